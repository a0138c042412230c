"""The kernel's gradients: of the same kind as those of `topk` and `annealed_topk`, and slopes of the formulas."""

from __future__ import annotations

import pytest
import torch

from tests.unit.sparsity.interpreted.test_forward import FORMS, NAN, expected, rows
from tests.unit.sparsity.test_annealing import formula
from topklm.sparsity.kernels.op import residual_topk

CASES = [(form, alpha) for form in FORMS for alpha in (None, 0.3)]


def run(stream: torch.Tensor, update: torch.Tensor | None, k: int, alpha: float | None, form: str) -> torch.Tensor:
    return residual_topk(stream, update, torch.tensor(k), None if alpha is None else torch.tensor(alpha), form)[0]


@pytest.mark.parametrize(("form", "alpha"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_reference(form: str, alpha: float | None, dtype: torch.dtype) -> None:
    stream, update = rows(13, dtype).requires_grad_(), torch.zeros(3, 13, dtype=dtype, requires_grad=True)
    weight = torch.randn(3, 13).to(dtype)
    found = torch.autograd.grad(run(stream, update, 4, alpha, form), (stream, update), weight)
    x = stream.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(expected(x, 4, alpha, form), x, weight)
    for gradient in found:
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("form", "alpha"), CASES)
def test_gradients_are_slopes(form: str, alpha: float | None) -> None:
    """Of the formula in float64, by differences; no two entries are as close to each other, or to zero, as the step."""
    x = torch.randperm(9, generator=torch.Generator().manual_seed(0)).double() - 3.7
    a, step = 0.0 if alpha is None else torch.tensor(alpha).item(), 1e-3
    weight = torch.randn(9, dtype=torch.float64)
    slopes = [
        (weight * (formula(x + e, 4, a, form) - formula(x - e, 4, a, form))).sum() / (2 * step)
        for e in torch.eye(9, dtype=torch.float64) * step
    ]
    leaf = x.float()[None].requires_grad_()
    (found,) = torch.autograd.grad(run(leaf, None, 4, alpha, form), leaf, weight.float()[None])
    torch.testing.assert_close(found[0].double(), torch.stack(slopes), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("form", "alpha"), [("blend", None), ("blend", 0.3), ("relu", 0.3)])
def test_the_gradient_has_a_gradient(form: str, alpha: float | None) -> None:
    x, weight = rows(5, torch.float32)[:1].requires_grad_(), torch.randn(1, 5, requires_grad=True)
    (first,) = torch.autograd.grad(run(x, None, 2, alpha, form), x, weight, create_graph=True)
    (found,) = torch.autograd.grad(first, weight, torch.ones(1, 5))
    (wanted,) = torch.autograd.grad(expected(x, 2, alpha, form), x, torch.ones(1, 5))
    assert torch.equal(found, wanted)


def test_nan_in_the_gradient_stays_where_it_is() -> None:
    x = torch.tensor([[3.0, 2.0, -1.0]], requires_grad=True)
    for alpha in (None, 0.5):
        (found,) = torch.autograd.grad(run(x, None, 1, alpha, "identity"), x, torch.tensor([[1.0, NAN, 1.0]]))
        assert found[0, 1].isnan() == (alpha is not None)  # nothing passes where nothing was selected


@pytest.mark.parametrize(("form", "alpha", "n_bytes"), [
    ("blend", None, 0), ("relu", None, 0), ("identity", None, 2),
    ("blend", 0.3, 2), ("relu", 0.3, 2), ("identity", 0.3, 2),
])  # fmt: skip
def test_what_is_kept(form: str, alpha: float | None, n_bytes: int) -> None:
    """A bit per entry, besides the output, which is kept anyway."""
    x = torch.randn(3, 13, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = run(x, x, 4, alpha, form)
    others = [t for t in saved if t.data_ptr() != out.data_ptr() and t.dim() > 0]
    assert sum(t.nbytes for t in others) == 3 * n_bytes


def test_alpha_that_moves_before_the_backward_is_an_error() -> None:
    alpha = torch.tensor(0.5)
    out, _ = residual_topk(torch.randn(1, 8, requires_grad=True), None, torch.tensor(2), alpha, "blend")
    alpha.fill_(0.4)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_op_is_registered_soundly(alpha: float | None) -> None:
    value = None if alpha is None else torch.tensor(alpha)
    inputs = (torch.randn(2, 9, requires_grad=True), torch.randn(2, 9, requires_grad=True), torch.tensor(3), value)
    torch.library.opcheck(torch.ops.topklm.residual_topk.default, (*inputs, "blend"))
    bits = torch.tensor([[5, 1], [0, 0]], dtype=torch.uint8)
    torch.library.opcheck(torch.ops.topklm.residual_topk_backward.default, (inputs[0], inputs[1].detach(), bits, value))
