"""Exactly k, against an independent stable sort in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from topklm.errors import ConfigError
from topklm.sparsity import select, topk
from topklm.sparsity.selection import _by_keys

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")
# Few values, so that there are many ties; all exact in every dtype.
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 6.0e-8, -6.0e-8, INF, -INF, NAN])


def reference_indices(row: list[float], k: int) -> set[int]:
    """By Python's own sort, which is stable: NaN first, then by value, then by index."""
    order = sorted(range(len(row)), key=lambda i: (0, 0.0) if row[i] != row[i] else (1, -row[i]))
    return set(order[:k])


def reference_topk(x: Tensor, k: int, nonlinearity: str) -> Tensor:
    rows = x.double().reshape(-1, x.shape[-1])
    out = torch.zeros_like(rows)
    for r, row in enumerate(rows.tolist()):
        for i in reference_indices(row, k):
            value = row[i]
            out[r, i] = 0.0 if nonlinearity == "relu" and value < 0 else value
    return out.view(x.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_against_a_stable_sort(dtype: torch.dtype, data: st.DataObject) -> None:
    dim = data.draw(st.integers(1, 40))
    rows = data.draw(st.lists(st.lists(VALUES, min_size=dim, max_size=dim), min_size=1, max_size=4))
    k = data.draw(st.integers(1, dim))
    x = torch.tensor(rows, dtype=torch.float64).to(dtype)
    chosen = select(x, k)
    expected = [reference_indices(row, k) for row in x.tolist()]
    assert [set(row) for row in chosen.tolist()] == expected
    assert [set(row) for row in _by_keys(x, k).tolist()] == expected  # what other devices than a CPU run
    for nonlinearity in ("relu", "identity"):
        out = topk(x, k, nonlinearity)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), reference_topk(x, k, nonlinearity), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_rows_with_real_ties(dtype: torch.dtype) -> None:
    x = torch.randn(6, 64, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[0] = (x[0] * 4).round() / 4
    for k in (1, 16, 255, 256):
        torch.testing.assert_close(topk(x, k, "identity").double(), reference_topk(x, k, "identity"), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_rows_take_the_first_k(dtype: torch.dtype) -> None:
    for value in (0.0, -3.0, 2.0, INF, -INF, NAN):
        assert select(torch.full((2, 100), value, dtype=dtype), 7).sort().values.tolist() == [list(range(7))] * 2


def test_negative_nan_and_other_payloads_count_as_nan() -> None:
    x = torch.tensor([1.0, NAN, 5.0, NAN])
    x.view(torch.int32)[1] = -1  # sign bit set
    x.view(torch.int32)[3] = 0x7F800001  # signalling
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert select(x.to(dtype), 1).tolist() == [1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_stay_where_they_are(dtype: torch.dtype) -> None:
    x = torch.tensor([INF, 3.0, INF, -INF, 1.0], dtype=dtype)
    assert topk(x, 1).tolist() == [INF, 0, 0, 0, 0]
    assert topk(x, 5).tolist() == [INF, 3, INF, 0, 1]
    assert topk(x, 5, "identity").tolist() == x.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 0, 5), (2, 3, 4, 5)])
def test_shapes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).to(dtype).requires_grad_()
    for nonlinearity in ("relu", "identity"):
        out = topk(x, 2, nonlinearity)
        out.sum().backward()
        assert out.shape == x.shape
    assert select(x, 2).shape == (*shape[:-1], 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_threads_select_the_same(dtype: torch.dtype) -> None:
    x = torch.randn(1030, 512).to(dtype)
    x[::7] = (x[::7] * 2).round()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = select(x, 32)
        torch.set_num_threads(3)
        three = select(x, 32)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)
    assert torch.equal(one.sort().values, _by_keys(x, 32).sort().values.to(torch.int16))


def test_strided_input() -> None:
    x = torch.randn(8, 5, 3).transpose(0, 2)  # [3, 5, 8], not contiguous
    torch.testing.assert_close(topk(x, 3), topk(x.contiguous(), 3), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide_rows(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 70_000, dtype=dtype)
    x[0, 66_000] = 1
    chosen = select(x, 3)
    assert chosen.dtype == torch.int32
    assert sorted(chosen[0].tolist()) == [0, 1, 66_000]
    assert select(x[:, :32_768], 3).dtype == torch.int16


def test_nan_reaches_the_loss() -> None:
    x = torch.randn(4, 16)
    x[2, 5] = NAN
    for k in (1, 8, 16):
        assert topk(x, k).sum().isnan()


@pytest.mark.parametrize("k", [0, -1, 17])
def test_impossible_k(k: int) -> None:
    with pytest.raises(ConfigError, match=r"k = -?\d+ is not between 1 and D"):
        topk(torch.randn(2, 16), k)


def test_wrong_nonlinearity_and_dtype() -> None:
    with pytest.raises(ConfigError, match="relu, identity"):
        topk(torch.randn(2, 16), 2, "gelu")
    with pytest.raises(ConfigError, match="floating point"):
        topk(torch.ones(2, 16, dtype=torch.int64), 2)


def test_op_is_registered_soundly() -> None:
    torch.library.opcheck(torch.ops.topklm.select.default, (torch.randn(3, 8), 2))
