"""FLOP against torch's counter, checkpoints against what is written, retention against a run's own."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.budget.conftest import cpu_setting
from tests.unit.budget.test_activations import built
from topklm.budget.course import checkpoints_of, course_of
from topklm.checkpoint import CheckpointStore
from topklm.train.optim import build_optimizer

PEAK = 1e12


def counted(config):
    """FLOP per token of matrix products and attention in a forward and backward pass, by kind."""
    model, setting = built(config), cpu_setting(config)
    tokens = torch.randint(0, 512, (setting.sequences, setting.seq_len))
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens.clone(), reduction="sum").backward()
    by_op = counter.get_flop_counts()["Global"]
    attention = sum(n for op, n in by_op.items() if "attention" in str(op))
    return (sum(by_op.values()) - attention) / setting.tokens, attention / setting.tokens


@pytest.mark.parametrize("changes", [{}, {"model__n_kv_heads": 1}, {"model__head_dim": 64, "model__n_heads": 3}])
def test_flop_per_token(make_config, changes):
    config = make_config(distributed__model_dtype="bf16", **changes)
    course = course_of(config, config.model, 1, PEAK)
    products, attention = counted(config)
    model = config.model
    formula = 12 * model.n_layers * config.data.seq_len * model.heads * model.head_width
    assert course.flops_per_token - formula == pytest.approx(products, rel=0.01)
    if attention:  # flash attention makes the scores once more in its backward pass: 14 instead of 12
        assert formula * 14 / 12 == pytest.approx(attention, rel=0.10)


def test_full_checkpointing_computes_the_blocks_forward_pass_again(make_config):
    plain = make_config(distributed__model_dtype="bf16")
    full = make_config(distributed__model_dtype="bf16", distributed__activation_checkpointing="full")
    again = course_of(full, full.model, 1, PEAK).recomputed_flops_per_token
    model = full.model
    attention = 4 * model.n_layers * full.data.seq_len * model.heads * model.head_width
    more = counted(full)[0] - counted(plain)[0]
    # The last product of a block, w2, is not needed again by a dense block; PyTorch stops before it.
    assert again - attention == pytest.approx(more, rel=0.10)
    assert course_of(plain, plain.model, 1, PEAK).recomputed_flops_per_token == 0


def test_time_follows_from_the_rate(make_config):
    config = make_config(data__global_batch_size=64, steps=100)
    course = course_of(config, config.model, 8, 0.45e12)
    assert course.tokens == 100 * 64 * 128
    assert course.hours * 3600 * 8 * 0.45e12 == pytest.approx(course.tokens * course.flops_per_token)
    assert course.gpu_hours == pytest.approx(8 * course.hours)


def test_the_size_of_a_checkpoint_on_disk(make_config, tmp_path):
    config = make_config(checkpoint__dump={"every": 1, "keep": 0})
    model = built(config)
    optimizer = build_optimizer(model, config.optim)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    (tmp_path / "tokenizer").mkdir()
    store = CheckpointStore(tmp_path / "checkpoints", config.checkpoint, 0, None)
    store.save(1, model, optimizer, {"step": 1}, {}, tmp_path / "tokenizer")
    files = [p.stat().st_size for p in (tmp_path / "checkpoints" / "0000000001").rglob("*") if p.is_file()]
    assert checkpoints_of(config, cpu_setting(config), 1, 1e9).bytes == pytest.approx(sum(files), rel=0.10)


@pytest.mark.parametrize(
    ("steps", "dump", "eval_"), [(20, (2, 3), (5, 0)), (21, (4, 1), (0, 0)), (7, (10, 1), (0, 0)), (12, (3, 0), (4, 2))]
)
def test_what_stays_on_disk_is_what_the_runs_retention_leaves(make_config, steps, dump, eval_):
    schedules = [{"every": every, "keep": keep} for every, keep in (dump, eval_)]
    config = make_config(steps=steps, checkpoint__dump=schedules[0], checkpoint__eval=schedules[1])
    saved, most, saves = [], 0, 0
    for step in range(1, steps + 1):
        if config.checkpoint.saves_at(step) or step == steps:
            saves, saved = saves + 1, [*saved, step]
            most = max(most, len(saved))
            retired = set(config.checkpoint.retired(saved)) - {step}
            saved = [each for each in saved if each not in retired]
    found = checkpoints_of(config, cpu_setting(config), 1, 1e9)
    assert (found.saves, found.kept) == (saves, len(saved))
    assert most * found.bytes <= found.disk <= (most + 1) * found.bytes


def test_ranks_share_the_writing_and_async_saves_take_memory(make_config):
    config = make_config(data__global_batch_size=64, checkpoint__async_save=True)
    setting = dataclasses.replace(cpu_setting(config, 32))
    found = checkpoints_of(config, setting, 4, 1e9)
    assert found.bytes == 12 * config.model.n_params
    assert found.bytes_per_rank == found.bytes / 32
    assert found.seconds == pytest.approx(found.bytes / 4e9)
    assert (found.blocking, found.waiting_seconds, found.host_bytes) == (False, 0, found.bytes / 4)
