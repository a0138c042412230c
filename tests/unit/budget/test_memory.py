"""The planned peak against the bytes that are alive: in real steps on one process, and in steps of one rank of up to
512 that FSDP2 runs through `parallelize` on fake process groups and fake tensors."""

import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.unit.budget.conftest import cpu_setting
from tests.unit.budget.test_activations import built
from topklm.budget import sizes
from topklm.budget.memory import moments, needed, peak

WITHIN = 0.10
MODES = ("none", "selective", "full")


@pytest.mark.parametrize(("mode", "dtype", "batch"), list(itertools.product(MODES, ("fp32", "bf16"), (2, 4))))
def test_the_peak_of_real_steps(make_config, measure, mode, dtype, batch):
    config = make_config(
        distributed__model_dtype=dtype, distributed__activation_checkpointing=mode, data__global_batch_size=batch
    )
    found = measure(config)
    assert found.setting.micro_batches == batch // 2
    planned = peak(found.setting).total
    assert planned == pytest.approx(found.peak, rel=WITHIN)
    assert planned > 0.95 * found.peak  # an estimate below what is needed is the worse one
    assert moments(found.setting)[0].total == pytest.approx(found.loss, rel=WITHIN)
    # The moments of AdamW, and the fp32 weights.
    assert moments(found.setting)[-1].optimizer == pytest.approx(found.state, rel=0.01)


@pytest.mark.parametrize(
    ("ranks", "batch", "replicas", "mode", "changes"),
    [
        (8, 16, None, "none", {}),
        (8, 32, None, "selective", {}),  # accumulation: the whole fp32 gradient on each rank
        (64, 128, None, "full", {}),
        (64, 128, 8, "selective", {"model__n_kv_heads": 2}),
        (512, 1024, None, "none", {"model__weight_tying": True}),
        (512, 512, 64, "none", {"topk": None, "model__dim": 96}),
        (8, 16, None, "none", {"distributed__model_dtype": "fp32"}),
        (8, 16, None, "none", {"distributed__fsdp_type": "no_shard"}),
    ],
)
def test_the_peak_of_a_rank_among_many(make_config, measure, ranks, batch, replicas, mode, changes):
    given = {
        "distributed__model_dtype": "bf16",
        "distributed__dp_replicate": replicas,
        "data__global_batch_size": batch,
    }
    config = make_config(**{**given, "distributed__activation_checkpointing": mode, **changes})
    found = measure(config, ranks)
    assert found.setting.replicas * found.setting.shards == ranks
    assert peak(found.setting).total == pytest.approx(found.peak, rel=WITHIN)
    own = moments(found.setting)[-1]
    assert own.weights == pytest.approx(found.weights, rel=0.02)
    assert own.gradients == pytest.approx(found.gradients, rel=0.02)
    assert own.optimizer == pytest.approx(found.state, rel=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_the_peak_of_torchs_own_allocator(make_config, mode):
    """What kernels take for themselves included, and nothing of ours counts it."""
    config = make_config(
        distributed__activation_checkpointing=mode, data__batch_size=8, data__seq_len=256, model__n_layers=4
    )
    model, setting = built(config), cpu_setting(config)
    tokens = torch.zeros((8, 256), dtype=torch.int64)
    model(tokens, tokens.clone(), reduction="sum").backward()
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        model(tokens, tokens.clone(), reduction="sum").backward()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    lasting = 12 * config.model.n_params  # weights and AdamW's moments, which were there before
    assert peak(setting).total - lasting == pytest.approx(max(itertools.accumulate(sizes)), rel=WITHIN)


class Recorded:
    """A collective of FSDP2 that notes the sizes of its buffers."""

    def __init__(self, own):
        self.own, self.sizes = own, []

    def allocate(self, size, *, dtype, device):
        self.sizes.append(size[0] * dtype.itemsize)
        return self.own.allocate(size, dtype=dtype, device=device)

    def __call__(self, *args, **kwargs):
        return self.own(*args, **kwargs)


@pytest.mark.parametrize("shape", [(1, 8), (1, 64), (1, 512), (8, 8)])
def test_buffers_of_the_collectives(make_config, measure, shape):
    """And with them what goes over the wire: a ring moves (n - 1) / n of each buffer."""
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

    from topklm.budget.network import traffic_of

    replicas, ranks = shape[0], shape[0] * shape[1]
    config = make_config(distributed__model_dtype="bf16", distributed__dp_replicate=replicas, model__dim=96)
    gather, scatter = Recorded(DefaultAllGather()), Recorded(DefaultReduceScatter())

    def record(model):
        for group in (model, *model.layers):
            group.set_custom_all_gather(gather)
            group.set_custom_reduce_scatter(scatter)

    found = measure(config, ranks, record)
    block, root = sizes.block(config.model), sizes.root(config.model)
    shards, layers = shape[1], config.model.n_layers
    assert set(gather.sizes) == {2 * block.padded(shards), 2 * root.padded(shards)}
    whole = [size for size in scatter.sizes if size in {4 * block.padded(shards), 4 * root.padded(shards)}]
    assert len(whole) == layers + 1  # of each group; the others are what a rank gets of them
    traffic = traffic_of(found.setting, 8, 450e9)
    ring = (shards - 1) / shards
    assert traffic.gathered == pytest.approx(ring * sum(gather.sizes))
    assert traffic.scattered == pytest.approx(ring * sum(whole))
    shard = sum(scatter.sizes) - sum(whole)
    assert traffic.reduced == pytest.approx(2 * (replicas - 1) / replicas * shard)


def test_a_shard_is_padded_up():
    group = sizes.Group([(10, 3), (4,)])
    assert group.numel == 34
    assert [group.shard(n) for n in (1, 4, 8, 64)] == [34, 3 * 3 + 1, 2 * 3 + 1, 4]
    assert group.padded(8) == 56


def test_what_is_needed_is_more_than_the_tensors(make_config):
    setting = cpu_setting(make_config())
    assert needed(setting, 0.0, 0) == peak(setting).total
    assert needed(setting, 0.1, 5.0) == pytest.approx(1.1 * peak(setting).total + 5)
