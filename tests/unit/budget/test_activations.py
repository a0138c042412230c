"""What is kept for the backward pass, against the bytes that are alive after real forward passes."""

import dataclasses
import itertools

import pytest
import torch

from tests.unit.budget.conftest import cpu_setting
from tests.unit.budget.live import LiveBytes
from topklm.budget import activations
from topklm.budget.memory import moments, peak
from topklm.model import build_model
from topklm.sparsity import set_alpha
from topklm.sparsity.kernels.choice import Kernel
from topklm.sparsity.patch import activations_of, sparse_states
from topklm.train.parallel import DTYPES, World, parallelize

WITHIN = 0.10
MODES = ("none", "selective", "full")
SHAPES = {
    "plain": {},
    "gqa": {"model__n_kv_heads": 1},
    "wide": {"model__dim": 192, "model__n_heads": 6, "model__ffn_dim": 256},
    "heads": {"model__head_dim": 64, "model__n_heads": 3},
    "large k": {"topk__k": 100},
    "no tail": {"topk__n_dense_tail": 0},
    "dense": {"topk": None},
    "identity": {"topk__anneal_form": "identity"},
    "masks": {"topk__k_per_layer": [4, 8]},
    "one sequence": {"data__batch_size": 1, "data__seq_len": 200},
}


def built(config, alpha=0.0):
    """The model of a configuration, its parameters in the dtype of compute, without FSDP2."""
    model = build_model(config.model, config.topk).to(DTYPES[config.distributed.model_dtype])
    parallelize(model, World(0, 0, 1, torch.device("cpu")), config.distributed)
    if config.topk is not None:
        set_alpha(model, alpha)
    return model


def planned(setting):
    """Of the blocks and the tokens: without the final norm and the targets, which `hidden` has nothing to do with."""
    return sum(activations.saved(setting).values()) - activations.of_final_norm(setting) - 8 * setting.tokens


def kept(config, alpha=0.0):
    """Bytes alive after the blocks' forward pass, their output not counted."""
    model, setting = built(config, alpha), cpu_setting(config)
    tokens = torch.randint(0, 512, (setting.sequences, setting.seq_len))
    with LiveBytes(model.parameters()) as live:
        before = live.now
        out = model.hidden(tokens)
        return live.now - before - live.size(out)


@pytest.mark.parametrize(("shape", "mode"), list(itertools.product(SHAPES, MODES)))
def test_every_shape_and_mode(make_config, shape, mode):
    changes = SHAPES[shape] | {"distributed__activation_checkpointing": mode}
    for dtype in ("fp32", "bf16"):
        config = make_config(distributed__model_dtype=dtype, **changes)
        assert planned(cpu_setting(config)) == pytest.approx(kept(config), rel=WITHIN), dtype


@pytest.mark.parametrize("form", ["blend", "identity", "relu"])
def test_annealing_needs_no_more_than_the_pure_cut(make_config, form):
    config = make_config(topk__anneal_form=form, distributed__model_dtype="bf16")
    assert kept(config, alpha=0.5) <= 1.01 * max(planned(cpu_setting(config)), kept(config))


@pytest.mark.parametrize("mode", ["none", "selective"])
def test_compiled_blocks(make_config, mode):
    """By the partitioner of torch.compile, whose choice is what a compiled block keeps; no code is generated."""
    config = make_config(distributed__model_dtype="bf16", distributed__activation_checkpointing=mode, model__n_layers=2)
    setting = dataclasses.replace(cpu_setting(config), compiled=True, on_cpu=False)  # compiled, both are one
    torch._dynamo.reset()
    model = built(config)
    for block in model.layers:
        block.compile(backend="aot_eager_decomp_partition")
    tokens = torch.randint(0, 512, (setting.sequences, setting.seq_len))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.dtype != torch.uint8:  # the state of random numbers
            found[storage.data_ptr()] = storage  # held, so that no other gets its place
        return tensor

    model.hidden(tokens).sum().backward()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(tokens)
    torch._dynamo.reset()
    assert planned(setting) == pytest.approx(sum(storage.nbytes() for storage in found.values()), rel=WITHIN)


def test_a_mask_of_documents(make_config):
    config = make_config(model__document_mask=True)
    model, setting = built(config), cpu_setting(config)
    tokens = torch.randint(0, 512, (setting.sequences, setting.seq_len))
    with LiveBytes(model.parameters()) as live:
        before = live.now
        out = model.hidden(tokens, document_ids=torch.zeros_like(tokens))
        measured = live.now - before - live.size(out)
    assert planned(setting) == pytest.approx(measured, rel=WITHIN)


@pytest.mark.parametrize(
    ("mode", "form"), [("none", "blend"), ("none", "identity"), ("full", "blend"), ("full", "identity")]
)
@pytest.mark.parametrize("annealing", [True, False])
def test_the_kernel(make_config, measure, mode, form, annealing):
    """What it keeps, by the shapes that it declares: it need not be here."""
    config = make_config(
        distributed__model_dtype="bf16", distributed__activation_checkpointing=mode, topk__anneal_form=form,
        data__global_batch_size=16,
    )  # fmt: skip

    def take_kernel(model):
        for activation in activations_of(model):
            activation.kernel = Kernel("auto", ("cpu",))
        for state in sparse_states(model):
            state.annealing = annealing

    found = measure(config, 8, take_kernel)
    with_kernel = dataclasses.replace(found.setting, kernel=True)
    assert peak(with_kernel).total == pytest.approx(found.peak, rel=WITHIN)
    assert moments(with_kernel)[0].total == pytest.approx(found.loss, rel=WITHIN)
