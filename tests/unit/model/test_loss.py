"""Chunked cross-entropy: equal to the plain one for any chunk, and no batch of fp32 logits is ever held."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.budget.live import LiveBytes
from topklm.model import IGNORE, linear_cross_entropy


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31), st.floats(0, 1))
def test_equal_to_the_plain_loss_for_any_chunk(n, chunk, seed, ignored):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 6, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 6, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 9, (n,), generator=g)
    targets[torch.rand(n, generator=g) < ignored] = IGNORE
    loss = linear_cross_entropy(hidden, weight, targets, chunk)
    plain = F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE, reduction="sum")
    assert loss.item() == pytest.approx(plain.item(), abs=1e-9)
    ours = torch.autograd.grad(loss * 0.3, (hidden, weight))
    theirs = torch.autograd.grad(plain * 0.3, (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


def test_gradcheck():
    torch.manual_seed(0)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1, 6, IGNORE, 0, 3])
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets, 2), (hidden, weight))


def test_bf16_gradients_are_as_good_as_plain_ones():
    torch.manual_seed(0)
    h64, w64 = torch.randn(64, 32).double(), torch.randn(100, 32).double()
    targets = torch.randint(0, 100, (64,))
    truth = torch.autograd.grad(
        F.cross_entropy(h64.requires_grad_() @ w64.requires_grad_().T, targets, reduction="sum"), (h64, w64)
    )

    def error(loss_of):
        h, w = h64.detach().bfloat16().requires_grad_(), w64.detach().bfloat16().requires_grad_()
        grads = torch.autograd.grad(loss_of(h, w), (h, w))
        return [((g - t).norm() / t.norm()).item() for g, t in zip(grads, truth, strict=True)]

    chunked = error(lambda h, w: linear_cross_entropy(h, w, targets, 16))
    plain = error(lambda h, w: F.cross_entropy((h @ w.T).float(), targets, reduction="sum"))
    for ours, theirs in zip(chunked, plain, strict=True):
        assert ours <= theirs * 1.2


def test_the_scale_of_bf16_gradients_is_not_rounded():
    """Where the number of tokens is no power of two, 1/n in bf16 is off by up to 0.4 %; gradients must be nearer."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32).bfloat16(), torch.randn(100, 32).bfloat16()
    targets = torch.randint(0, 100, (64,))

    def grad_sum(scale):
        h = hidden.clone().requires_grad_()
        (linear_cross_entropy(h, weight, targets, 16) * scale).backward()
        return h.grad.double().abs().sum().item()

    scale = 1.0117 / 64  # 0.38 % from the nearest bf16 number
    assert grad_sum(scale) / grad_sum(1.0) == pytest.approx(scale, rel=1.5e-3)


def test_only_one_chunk_of_logits_is_held():
    """Peak memory of forward and backward, by torch's own account, must not grow with the number of tokens x V."""
    n, d, v, chunk = 512, 16, 1024, 32
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    saved = []

    def note(t):
        saved.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = linear_cross_entropy(hidden, weight, torch.randint(0, v, (n,)), chunk)
    loss.backward()
    assert sum(saved) <= n * d + v * d


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_chunk_is_gone_when_the_next_one_is_made(dtype):
    n, d, v, chunk = 256, 16, 4096, 64
    hidden, weight = (torch.randn(size, d, dtype=dtype, requires_grad=True) for size in (n, v))
    with LiveBytes([hidden, weight]) as live:
        before = live.now
        linear_cross_entropy(hidden, weight, torch.randint(0, v, (n,)), chunk)
    logits_and_softmax, head, stream = 2 * 4 * chunk * v, 4 * v * d, hidden.numel() * dtype.itemsize
    assert live.peak - before <= 1.01 * (logits_and_softmax + head + stream)


def test_the_gradient_has_no_second_one():
    """It is made in the forward pass, as a constant: what hangs on it would be left out of a second derivative."""
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4)
    loss = linear_cross_entropy(hidden, weight, torch.randint(0, 7, (5,)))
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(loss.square(), hidden, create_graph=True)


def test_a_target_whose_probability_is_0_has_its_loss():
    hidden, weight = torch.tensor([[1.0], [-1.0]]), torch.tensor([[200.0], [-200.0], [0.0]])
    targets = torch.tensor([1, 1])
    assert linear_cross_entropy(hidden, weight, targets).item() == pytest.approx(400.0)
    loss = linear_cross_entropy(torch.tensor([[float("nan")]]), weight, targets[:1])
    assert loss.isnan()


@pytest.mark.parametrize("dims", [(24, 40), (40, 24)])
def test_more_tokens_than_a_cpu_takes_at_once(dims):
    """Gradients are summed over chunks in the order that the product gives them."""
    torch.manual_seed(0)
    D, V = dims
    hidden, weight = torch.randn(600, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    targets = torch.randint(0, V, (600,))
    ours = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    true = torch.autograd.grad(F.cross_entropy(wide[0] @ wide[1].T, targets, reduction="sum"), wide)
    for a, b in zip(ours, true, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
