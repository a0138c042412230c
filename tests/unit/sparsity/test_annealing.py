"""The three readings of Eq. 3 against their formulas, their gradients, and what they keep for the backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from topklm.errors import ConfigError
from topklm.sparsity import TopKConfig, alpha_at, annealed_topk, topk

FORMS = ("blend", "identity", "relu")
INF = float("inf")


def formula(x: Tensor, k: int, alpha: float, form: str) -> Tensor:
    """As in the paper, in float64 with a mask of ones and zeros."""
    x = x.double()
    order = torch.sort(x, dim=-1, descending=True, stable=True).indices[..., :k]
    m = torch.zeros_like(x).scatter(-1, order, 1.0)
    return {
        "blend": alpha * x + (1 - alpha) * x.relu() * m,
        "identity": x * (m + alpha * (1 - m)),
        "relu": x.relu() * (m + alpha * (1 - m)),
    }[form]


def apply(x: Tensor, k: int, alpha: float, form: str) -> Tensor:
    if alpha == 0:
        return topk(x, k, "identity" if form == "identity" else "relu")
    return annealed_topk(x, k, torch.tensor(alpha), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0.0, 0.125, 0.7, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_against_the_formula(form: str, alpha: float, dtype: torch.dtype) -> None:
    alpha = torch.tensor(alpha).item()  # as fp32 has it
    x = torch.randn(5, 7, 48, generator=torch.Generator().manual_seed(3)).to(dtype)
    x[0] -= 3  # fewer than k positive entries
    expected = formula(x, 12, alpha, form)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    torch.testing.assert_close(apply(x, 12, alpha, form).double(), expected, rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alpha_is_not_rounded_to_the_dtype_of_the_stream(dtype: torch.dtype) -> None:
    x = -torch.arange(1.0, 65).to(dtype)
    out = annealed_topk(x, 1, torch.tensor(0.3), "identity")
    assert torch.equal(out[1:], (x.float() * torch.tensor(0.3)).to(dtype)[1:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_alpha_1_is_exactly_dense(dtype: torch.dtype) -> None:
    x = torch.randn(9, 33).to(dtype)
    x[0, :4] = torch.tensor([INF, -INF, 0.0, -0.0])
    assert torch.equal(apply(x, 5, 1.0, "blend"), x)
    assert torch.equal(apply(x, 5, 1.0, "identity"), x)
    assert torch.equal(apply(x, 5, 1.0, "relu"), x.relu())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_infinite_entries_make_no_nan(form: str, alpha: float) -> None:
    x = torch.tensor([[INF, 1.0, INF, -INF, 2.0, -1.0]])
    for k in (1, 2, 6):
        assert not apply(x, k, alpha, form).isnan().any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_nan_stays(form: str, alpha: float) -> None:
    x = torch.tensor([[1.0, float("nan"), 2.0, -1.0]])
    for k in (1, 4):
        assert apply(x, k, alpha, form)[0, 1].isnan()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_gradcheck(form: str, alpha: float, k: int) -> None:
    # Distinct values, none within the step of gradcheck of another one or of zero.
    x = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(3)]).double() - 3.7
    x.requires_grad_()
    f: Callable[[Tensor], Tensor] = partial(apply, k=k, alpha=alpha, form=form)
    assert torch.autograd.gradcheck(f, (x,))
    assert torch.autograd.gradgradcheck(f, (x,))


@pytest.mark.parametrize(
    ("form", "alpha", "record_bytes"),
    [
        ("blend", 0.0, 0),  # the output alone, which the next norm keeps anyway
        ("relu", 0.0, 0),
        ("identity", 0.0, 2),  # int16 per kept entry
        ("blend", 0.5, 2),
        ("identity", 0.5, 2),
        ("relu", 0.5, 2),
    ],
)
def test_saved_for_the_backward(form: str, alpha: float, record_bytes: int) -> None:
    k, tokens = 8, 10
    x = torch.randn(tokens, 256, requires_grad=True) * 1.0
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = apply(x, k, alpha, form)
    others = [t for t in saved if t.data_ptr() != out.data_ptr() and t.dim() > 0]
    assert sum(t.nbytes for t in others) == tokens * k * record_bytes
    assert all(t.data_ptr() != x.data_ptr() for t in saved)


def test_alpha_that_moves_before_the_backward_is_an_error() -> None:
    alpha = torch.tensor(0.5)
    out = annealed_topk(torch.randn(3, 8, requires_grad=True), 2, alpha)
    alpha.fill_(0.4)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_schedule() -> None:
    assert [alpha_at(step, 4) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [alpha_at(step, 0) for step in range(3)] == [0.0, 0.0, 0.0]
    cfg = TopKConfig(anneal_ratio=0.5).resolve(101)
    assert cfg.anneal_steps == 50
    assert cfg.resolve(1000).anneal_steps == 50  # a longer run keeps it
    assert TopKConfig(anneal_steps=0).resolve(100).anneal_steps == 0


def test_problems() -> None:
    assert not list(TopKConfig().problems())
    bad = TopKConfig(activation="tokp", k=0, n_dense_tail=-1, anneal_ratio=float("nan"), anneal_steps=-1)
    found = {problem.key: problem.message for problem in bad.problems()}
    assert set(found) == {"activation", "k", "n_dense_tail", "anneal_ratio", "anneal_steps"}
    assert "did you mean topk?" in found["activation"]
    assert [p.key for p in TopKConfig(anneal_form="x").problems()] == ["anneal_form"]
    assert {p.key for p in TopKConfig(k=33, n_dense_tail=5).problems_for(32, 4)} == {"k", "n_dense_tail"}
    assert not list(TopKConfig(k=32, n_dense_tail=4).problems_for(32, 4))


def test_unknown_form() -> None:
    with pytest.raises(ConfigError, match="blend, identity, relu"):
        annealed_topk(torch.randn(3, 8), 2, torch.tensor(0.5), "linear")
