"""Eager, compiled, and recomputed in the backward: the same training, with few graphs and one selection per forward."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_stack as tiny
import torch
from torch._dynamo.utils import counters

from topklm.sparsity import TopKConfig, alpha_at, selection, set_alpha

STEPS, ANNEAL_STEPS = 6, 4  # alpha: 1, 3/4, 1/2, 1/4, 0, 0


@pytest.fixture
def selections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the calls of what is behind the selection op."""
    count = [0]
    original = selection.select_rows

    def counted(x: torch.Tensor, k: int) -> torch.Tensor:
        count[0] += 1
        return original(x, k)

    monkeypatch.setattr(selection, "select_rows", counted)
    return count


def train(model: tiny.Stack, count: list[int]) -> tuple[list[float], list[int]]:
    """Losses, and selections per step, over optimizer steps with moving alpha."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, selections = [], []
    for step in range(STEPS):
        set_alpha(model, alpha_at(step, ANNEAL_STEPS))
        count[0] = 0
        loss = tiny.loss_of(model, tiny.make_batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        selections.append(count[0])
    return losses, selections


MODES = [
    *[("blend", mode, how, "aot_eager") for mode in tiny.CHECKPOINTING for how in ("eager", "forward", "inplace")],
    *[(form, "full", how, "aot_eager") for form in ("identity", "relu") for how in ("eager", "forward")],
    ("blend", "full", "forward", "inductor"),
]


@pytest.mark.parametrize(("form", "mode", "how", "backend"), MODES)
def test_same_losses(form: Any, mode: str, how: str, backend: str, selections: list[int]) -> None:
    torch._dynamo.reset()
    counters.clear()
    cfg = TopKConfig(k=6, n_dense_tail=2, anneal_form=form)
    expected, _ = train(tiny.make_stack(cfg), selections)

    model = tiny.make_stack(cfg)
    tiny.checkpoint_blocks(model, mode)
    tiny.compile_blocks(model, how, backend=backend, fullgraph=True)
    assert list(model.state_dict()) == list(tiny.make_stack(None).state_dict())
    losses, per_step = train(model, selections)

    # No flip was ever seen here; one would show as a difference of about 1e-3, and its margin decides then.
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)
    assert per_step == [3] * STEPS  # of five blocks three are sparse; none is selected again in the backward
    # Annealing, pure, and the dense tail: none more although alpha moves and three blocks are sparse.
    assert counters["stats"]["unique_graphs"] == (0 if how == "eager" else 3)
    torch._dynamo.reset()


def test_without_saving_the_selection_it_runs_again(selections: list[int]) -> None:
    """The count above can fail."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = tiny.make_stack(TopKConfig(k=6, n_dense_tail=2))
    for i, block in enumerate(model.layers):
        model.layers[i] = checkpoint_wrapper(block)
    assert train(model, selections)[1] == [6] * STEPS


@pytest.mark.parametrize("how", ["forward", "inplace"])
def test_foreign_blocks_compile_as_well(how: str, selections: list[int]) -> None:
    torch._dynamo.reset()
    counters.clear()
    cfg = TopKConfig(k=6, n_dense_tail=2)
    for block in (tiny.PlainBlock, tiny.TupleBlock):
        expected, _ = train(tiny.make_stack(cfg, block), selections)
        model = tiny.make_stack(cfg, block)
        tiny.compile_blocks(model, how, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(train(model, selections)[0], expected, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 6
    torch._dynamo.reset()


def test_what_full_checkpointing_keeps() -> None:
    """Per sparse block its input and the selection (int16), nothing else of the size of the stream."""
    kept: dict[str, int] = {}
    for mode in ("none", "full"):
        model = tiny.make_stack(TopKConfig(k=6, n_dense_tail=0))
        tiny.checkpoint_blocks(model, mode)
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            tiny.loss_of(model, tiny.make_batch(0))
        parameters = {p.data_ptr() for p in model.parameters()}
        kept[mode] = sum({t.data_ptr(): t.nbytes for t in saved if t.data_ptr() not in parameters}.values())
    assert kept["full"] < kept["none"] / 3
