"""Products of weights by oneDNN: the same numbers as torch's own and its gradients, taken only where they are meant."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from topklm.model import linear as products
from topklm.model.linear import PRODUCTS, Linear, linear, weight_gradient

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """oneDNN is taken whatever the machine is; the shapes of the products that it makes."""
    made, product = [], products._product

    def counted(x, weight):
        made.append((*x.shape[:-1], *weight.shape))
        return product(x, weight)

    monkeypatch.setattr(products, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(products, "_product", counted)
    return made


def grads(product, x, weight):
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = product(*leaves)
    return out.detach(), *torch.autograd.grad((out * torch.arange(out.shape[-1])).sum(), leaves)


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (40, 24), (32, 32)])
@pytest.mark.parametrize("shape", [(33,), (5, 17), (2, 3, 16)])
def test_product_and_gradients_are_those_in_float64(calls, shape, inputs, outputs):
    torch.manual_seed(0)
    x, weight = torch.randn(*shape, inputs), torch.randn(outputs, inputs)
    exact = grads(F.linear, x.double(), weight.double())
    ours, plain = grads(linear, x, weight), grads(F.linear, x, weight)
    assert len(calls) == 3  # forward, and both gradients
    for mine, torchs, true in zip(ours, plain, exact, strict=True):
        rounding = torch.finfo(torch.float32).eps * true.abs().max() * 8
        assert mine.shape == true.shape
        assert (mine - true).abs().max() <= rounding
        assert (torchs - true).abs().max() <= rounding  # the rounding that is allowed is that of the plain product


def test_weight_gradient_is_the_product_over_rows():
    x, grad = torch.randn(4, 9, 8), torch.randn(4, 9, 6)
    torch.testing.assert_close(weight_gradient(x, grad), torch.einsum("btf,btd->fd", grad, x))


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(32, 8, dtype=torch.float64),
        torch.ones(32, 8, dtype=torch.bfloat16),
        torch.ones(8, 8),
        torch.ones(0, 8),
    ],
    ids=["fp64", "bf16", "few rows", "no rows"],
)
def test_other_products_are_torchs_own(calls, x):
    weight = torch.randn(6, 8, dtype=x.dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert not calls


def test_autocast_and_a_machine_where_it_is_not_faster(calls, monkeypatch):
    x, layer = torch.randn(32, 8), Linear(8, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    monkeypatch.setattr(products, "ONEDNN_IS_FASTER", False)
    assert torch.equal(layer(x), F.linear(x, layer.weight))
    assert not calls


def test_without_gradients_nothing_is_kept(calls):
    x, layer = torch.randn(32, 8), Linear(8, 6)
    with torch.no_grad():
        assert layer(x).grad_fn is None
    assert linear(x, layer.weight.detach()).grad_fn is None
    assert len(calls) == 2


def test_second_derivatives(calls):
    x, weight = torch.randn(16, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)
    found, expected = [], []
    for product, kept in ((linear, found), (F.linear, expected)):
        first = torch.autograd.grad(product(x, weight).pow(3).sum(), (x, weight), create_graph=True)
        kept += torch.autograd.grad(sum(g.pow(2).sum() for g in first), (x, weight))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=b.abs().max().item() * 1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_products_are_the_same(calls, backend, monkeypatch):
    monkeypatch.undo()  # what counts is not to be traced
    monkeypatch.setattr(products, "ONEDNN_IS_FASTER", True)
    torch.manual_seed(0)
    x, weight = torch.randn(32, 24), torch.randn(40, 24)
    for a, b in zip(grads(linear, x, weight), grads(torch.compile(linear, backend=backend), x, weight), strict=True):
        assert torch.equal(a, b)


def test_selective_checkpointing_keeps_the_product(calls):
    x, layer = torch.randn(32, 8, requires_grad=True), Linear(8, 6)
    contexts = lambda: create_selective_checkpoint_contexts([*PRODUCTS])  # noqa: E731
    checkpoint(lambda x: layer(x).tanh(), x, use_reentrant=False, context_fn=contexts).sum().backward()
    (grad,) = torch.autograd.grad(F.linear(x, layer.weight).tanh().sum(), x)
    torch.testing.assert_close(x.grad, grad)
