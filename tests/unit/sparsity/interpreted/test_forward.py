"""The kernel's forward pass, to the bit: against `topk` and `annealed_topk`, and a stable sort in float64."""

from __future__ import annotations

import pytest
import torch
from cases import largest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from topklm.errors import ConfigError
from topklm.sparsity import annealed_topk, topk
from topklm.sparsity.kernels.op import residual_topk

INF, NAN = float("inf"), float("nan")
FORMS = ("blend", "identity", "relu")
# Few values, so that there are many ties.
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 1e-40, -1e-40, 6.0e-8, INF, -INF, NAN])


def expected(x: Tensor, k: int, alpha: float | None, form: str) -> Tensor:
    if alpha is None:
        return topk(x, k, "identity" if form == "identity" else "relu")
    return annealed_topk(x, k, torch.tensor(alpha), form)


def unpacked(bits: Tensor, dim: int) -> Tensor:
    """bool [..., D]: bit i of byte b is entry 8 b + i."""
    return ((bits.unsqueeze(-1) >> torch.arange(8)) & 1).bool().flatten(-2)[..., :dim]


def check(stream: Tensor, update: Tensor | None, k: int, alpha: float | None, form: str) -> None:
    x = stream if update is None else stream + update
    dim = x.shape[-1]
    value = None if alpha is None else torch.tensor(alpha)
    out, bits = residual_topk(stream, update, torch.tensor(k), value, form)
    assert out.dtype == x.dtype
    torch.testing.assert_close(out, expected(x, k, alpha, form), rtol=0, atol=0, equal_nan=True)
    if alpha is None and form != "identity":
        assert bits.numel() == 0
        return
    chosen = torch.zeros(x.shape, dtype=torch.bool)
    for row, numbers in zip(chosen.view(-1, dim), x.double().view(-1, dim).tolist(), strict=True):
        row[list(largest(numbers, k))] = True
    whole = chosen & (x > 0) if form == "blend" else chosen
    assert torch.equal(unpacked(bits, dim), whole)
    assert not unpacked(bits, bits.shape[-1] * 8)[..., dim:].any()


def rows(dim: int, dtype: torch.dtype) -> Tensor:
    """Plain, with ties, and with all that is special."""
    x = torch.randn(3, dim, generator=torch.Generator().manual_seed(dim))
    x[1] = (x[1] * 2).round()
    special = torch.tensor([0.0, -0.0, INF, -INF, NAN, 1e-40, -1e-40, 1.0, 1.0])[:dim]
    x[2, : len(special)] = special
    return x.to(dtype)


@pytest.mark.parametrize(("dtype", "dim", "k", "alpha", "form"), [
    (torch.float32, 1, 1, None, "blend"),
    (torch.float32, 7, 3, 0.3, "relu"),
    (torch.float32, 64, 1, 0.3, "blend"),
    (torch.float32, 100, 99, None, "identity"),
    (torch.float32, 100, 100, 1.0, "blend"),
    (torch.float32, 1000, 64, 0.3, "identity"),
    (torch.float32, 2048, 64, None, "relu"),
    (torch.bfloat16, 1, 1, 0.3, "blend"),
    (torch.bfloat16, 7, 7, None, "identity"),
    (torch.bfloat16, 64, 16, None, "blend"),
    (torch.bfloat16, 100, 16, 0.3, "relu"),
    (torch.bfloat16, 1000, 999, 0.3, "blend"),
    (torch.bfloat16, 2048, 64, None, "blend"),
    (torch.float16, 100, 16, 0.3, "blend"),
])  # fmt: skip
def test_sum_and_selection(dtype: torch.dtype, dim: int, k: int, alpha: float | None, form: str) -> None:
    update = torch.randn(3, dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    update[1:] = 0
    check(rows(dim, dtype), update, k, alpha, form)


def test_the_widest_row_without_a_sum() -> None:
    check(torch.randn(1, 8192, generator=torch.Generator().manual_seed(2)).bfloat16(), None, 64, None, "identity")


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_row(data: st.DataObject) -> None:
    dim = data.draw(st.integers(1, 20))
    row = torch.tensor([data.draw(st.lists(VALUES, min_size=dim, max_size=dim))])
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    check(row.to(dtype), None, data.draw(st.integers(1, dim)), data.draw(st.sampled_from([None, 0.3])), "identity")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_far_from_a_bell(dtype: torch.dtype) -> None:
    """Where the first guess is worth nothing: the search ends, at the right place."""
    normal = torch.randn(256, generator=torch.Generator().manual_seed(3))
    odd = torch.stack([
        torch.full((256,), 2.5), torch.full((256,), -INF), torch.full((256,), NAN), (normal * 30).exp(),
        torch.where(torch.arange(256) == 9, 1e30, normal), torch.where(normal > 2, 1.0, -1e-30), normal.sort().values,
        torch.where(torch.arange(256) % 3 == 0, normal + 5, normal * 1e-3),
    ]).to(dtype)  # fmt: skip
    check(odd, None, 20, None, "identity")


def test_nan_of_any_sign_and_payload() -> None:
    x = torch.tensor([[1.0, NAN, 5.0, NAN]])
    x.view(torch.int32)[0, 1] = -1  # sign bit set
    x.view(torch.int32)[0, 3] = 0x7F800001  # signalling
    _, bits = residual_topk(x, None, torch.tensor(2), None, "identity")
    assert bits.tolist() == [[0b1010]]


def test_shapes_and_strides() -> None:
    for shape in ((5,), (0, 5), (2, 0, 5), (2, 1, 2, 5)):
        x = torch.randn(shape)
        out, bits = residual_topk(x, x, torch.tensor(2), torch.tensor(0.5), "blend")
        assert out.shape == shape
        assert bits.shape == (*shape[:-1], 1)
    strided = torch.randn(5, 2).t()
    assert torch.equal(residual_topk(strided, None, torch.tensor(2), None, "relu")[0], topk(strided, 2))


@pytest.mark.parametrize("k", [0, 17])
def test_impossible_k(k: int) -> None:
    with pytest.raises(ConfigError, match="is not between 1 and D"):
        residual_topk(torch.randn(2, 16), None, torch.tensor(k), None, "blend")
