"""Models whose blocks run the kernel against the same ones in PyTorch: eager, compiled, checkpointed, watched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_stack as tiny
import torch
from torch._dynamo.utils import counters

from topklm.errors import ConfigError
from topklm.interp.interventions import Intervention, intervene
from topklm.sparsity import TopKConfig, record_health, set_alpha, set_kernel
from topklm.sparsity.kernels import rows

CFG = TopKConfig(k=6)
BATCH = tiny.make_batch(0, size=1)[:, :5]  # four tokens: a program for each, and the interpreter takes its time


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of the forward kernel: whether it added."""
    found: list[bool] = []
    original = rows.forward
    monkeypatch.setattr(rows, "forward", lambda s, u, *rest: (found.append(u is not None), original(s, u, *rest)))
    return found


def make(cfg: TopKConfig = CFG, kernel: str = "triton", block: type = tiny.SeamBlock) -> tiny.Stack:
    model = tiny.make_stack(replace(cfg, n_dense_tail=1), block, n_layers=3)
    set_kernel(model, kernel)
    return model


def step(model: tiny.Stack, alpha: float) -> list[torch.Tensor]:
    """The loss, and the gradient of every parameter."""
    model.zero_grad()
    set_alpha(model, alpha)
    loss = tiny.loss_of(model, BATCH)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("cfg", [
    CFG, replace(CFG, anneal_form="identity"), replace(CFG, anneal_form="relu"), replace(CFG, schedule="k"),
    replace(CFG, k_per_layer=[3, 6]), replace(CFG, gradient="straight_through"),
], ids=["blend", "identity", "relu", "schedule k", "k per layer", "straight through"])  # fmt: skip
def test_a_model_is_the_same_to_the_bit(cfg: TopKConfig, launches: list[bool]) -> None:
    ours, theirs = make(cfg), make(cfg, "torch")
    for alpha in (0.5, 0.0):
        assert all(map(torch.equal, step(ours, alpha), step(theirs, alpha)))
    assert launches == [cfg.gradient == "plain"] * 4


@pytest.mark.parametrize("block", [tiny.PlainBlock, tiny.TupleBlock])
def test_foreign_blocks_run_it_without_the_sum(block: type, launches: list[bool]) -> None:
    assert all(map(torch.equal, step(make(block=block), 0.5), step(make(kernel="torch", block=block), 0.5)))
    assert launches == [False] * 2


@pytest.mark.parametrize(("mode", "how", "backend"), [
    ("full", "forward", "aot_eager"), ("full", "eager", ""),
    ("selective", "inplace", "aot_eager"),
])  # fmt: skip
def test_compiled_and_checkpointed(mode: str, how: str, backend: str, launches: list[bool]) -> None:
    """Two graphs whatever alpha does, and no selection is made again in the backward."""
    torch._dynamo.reset()
    counters.clear()
    model, plain = make(), make(kernel="torch")
    tiny.checkpoint_blocks(model, mode)
    tiny.compile_blocks(model, how, backend=backend, fullgraph=True)
    for alpha in (0.75, 0.5, 0.0):
        torch.testing.assert_close(step(model, alpha), step(plain, alpha), rtol=1e-5, atol=1e-6)
    assert launches == [True] * 6
    assert counters["stats"]["unique_graphs"] == (0 if how == "eager" else 3)  # with the dense tail's
    torch._dynamo.reset()


def test_whoever_wants_the_sum_gets_it(launches: list[bool]) -> None:
    figures = []
    for model in (make(), make(kernel="torch")):
        set_alpha(model, 0.0)
        with record_health(model) as health, torch.no_grad():
            model(BATCH)
        figures.append(health.summary())
    assert figures[0] == figures[1]
    assert launches == [False] * 2  # the recorder's sum is not added up a second time


def test_interventions_before_the_cut_are_made_in_the_sum(launches: list[bool]) -> None:
    logits = []
    change = Intervention(layer=1, neurons=[3], site="pre", op="set", value=9.0)
    for model in (make(), make(kernel="torch")):
        set_alpha(model, 0.0)
        with torch.no_grad(), intervene(model, [change]):
            logits.append(model(BATCH))
        logits.append(model(BATCH))
    assert torch.equal(logits[0], logits[2])
    assert torch.equal(logits[1], logits[3])
    assert not torch.equal(logits[0], logits[1])
    assert launches == [True, False, True, True]


def test_a_tensor_that_it_cannot_take() -> None:
    with pytest.raises(ConfigError, match=r"not in torch\.float64; take auto"):
        step(make().double(), 0.5)
    set_kernel(model := make().double(), "auto")
    step(model, 0.5)
