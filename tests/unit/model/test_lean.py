"""Norm and SwiGLU that keep only their inputs: the numbers and gradients of the plain formulas, and fewer bytes."""

import pytest
import torch
import torch.nn.functional as F

from topklm.model import ModelConfig
from topklm.model.lean import rms_norm, swiglu
from topklm.model.transformer import FeedForward, RMSNorm, Transformer, rotary_table


def kept_bytes(run, *given, beside=()):
    """Bytes that autograd keeps for the backward of run(*given), but for what is given and `beside`; a storage once."""
    own, seen = {t.untyped_storage().data_ptr() for t in (*given, *beside)}, {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(*given)
    return sum(storage.nbytes() for place, storage in seen.items() if place not in own)


def test_gradcheck():
    torch.manual_seed(0)
    a, b, w = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 5), (2, 3, 5), (4, 5)))
    assert torch.autograd.gradcheck(swiglu, (a, b, w))
    gain = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, g: rms_norm(x, g, 1e-5), (a, gain))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_norm_is_torchs(dtype, scale):
    torch.manual_seed(0)
    x, gain = (scale * torch.randn(3, 7, 16)).to(dtype), torch.randn(16).to(dtype)
    found, expected = [], []
    for form, kept in ((rms_norm, found), (lambda x, g, eps: F.rms_norm(x, g.shape, g, eps), expected)):
        leaves = [t.clone().requires_grad_() for t in (x, gain)]
        wide = leaves if form is rms_norm else [t.to(torch.promote_types(dtype, torch.float32)) for t in leaves]
        out = form(*wide, 1e-5).to(dtype)
        assert torch.equal(out, rms_norm(*leaves, 1e-5)) or form is not rms_norm
        kept += [out.detach(), *torch.autograd.grad((out * torch.arange(16).to(dtype)).sum(), leaves)]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def test_swiglu_is_the_plain_formula_and_no_grad_changes_nothing():
    torch.manual_seed(0)
    layer, x = FeedForward(8, 24).double(), torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    lean = layer(x)
    ours = torch.autograd.grad(lean.pow(2).sum(), (x, *layer.parameters()))
    plain = layer.eval()(x)
    theirs = torch.autograd.grad(plain.pow(2).sum(), (x, *layer.parameters()))
    torch.testing.assert_close(lean, plain, rtol=1e-14, atol=1e-14)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(layer(x), plain)


def test_hooks_on_w2_see_its_input_outside_training():
    seen = []
    layer = FeedForward(8, 24).eval()
    layer.w2.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    layer(torch.randn(2, 3, 8))
    assert seen == [(2, 3, 24)]


def test_autocast_trains():
    layer, x = FeedForward(8, 24), torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert layer.w2.weight.grad.dtype == torch.float32


def test_what_is_kept():
    """Two widths of F for four, and of a norm its input and a number a row."""
    n, d, f = 6, 8, 24
    x = torch.randn(n, d, requires_grad=True)
    layer = FeedForward(d, f)
    assert kept_bytes(layer, x, beside=layer.parameters()) == 4 * n * 2 * f
    assert kept_bytes(layer.eval(), x, beside=layer.parameters()) == 4 * n * 4 * f
    norm = RMSNorm(d, 1e-5)
    assert kept_bytes(norm, x, beside=norm.parameters()) == 4 * n


@pytest.mark.parametrize("gqa", [None, 1])
def test_a_blocks_activations_by_the_count(gqa):
    """Per token 3 D + 2 (H + H_kv) d + 2 F numbers, one for each norm and head, and the block's input."""
    config = ModelConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=gqa, ffn_dim=48, vocab_size=16)
    (block,) = Transformer(config).layers
    x = torch.randn(2, 8, 32, requires_grad=True)
    table = rotary_table(8, config.head_width, config.rope_theta, None, x)
    kept = kept_bytes(lambda x: block(x, table), x, beside=block.parameters())
    tokens, d = 16, config.head_width
    numbers = 3 * 32 + (2 * config.heads + 2 * config.kv_heads) * d + 2 * 48 + 2 + config.heads
    rope = 2 * 8 * (d // 2) * 8  # the table as complex numbers, for queries and for keys, not for each sequence
    assert kept == 4 * numbers * tokens + rope


def test_training_does_not_depend_on_it():
    """Losses of a few steps with the lean forms are those of the plain ones, in float64."""
    config = ModelConfig(dim=16, n_layers=2, n_heads=2, vocab_size=32, max_seqlen=8)
    tokens = torch.randint(0, 32, (4, 9), generator=torch.Generator().manual_seed(0))
    curves = []
    for plain in (False, True):
        model = Transformer(config).double()
        if plain:
            for module in model.modules():
                if isinstance(module, FeedForward):
                    module.eval()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        losses = []
        for _ in range(5):
            loss = model(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0] == pytest.approx(curves[1], abs=1e-10)
