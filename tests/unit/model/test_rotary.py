"""The rotation of pairs: a complex product on a CPU, the written-out formula elsewhere, the same numbers from both."""

import pytest
import torch

from topklm.model.transformer import rotary_table, rotate


def written_out(x, cos, sin):
    even, odd = x.to(cos.dtype)[..., 0::2], x.to(cos.dtype)[..., 1::2]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).type_as(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [False, True])
def test_the_complex_product_is_the_written_out_formula_and_has_its_gradient(dtype, rows):
    torch.manual_seed(0)
    x = torch.randn(3, 7, 4, 6).to(dtype)
    cos, sin = rotary_table(7, 6, 10_000.0, None, x)
    if rows:  # positions of a cache's rows: a table for each
        cos, sin = torch.stack((cos, cos.flip(0), cos)), torch.stack((sin, sin.flip(0), sin))
    found, expected = ([], [])
    for form, kept in ((rotate, found), (written_out, expected)):
        leaf = x.clone().requires_grad_()
        out = form(leaf, cos, sin)
        kept += [out.detach(), *torch.autograd.grad((out * torch.arange(6.0)).sum(), leaf)]
    for a, b in zip(found, expected, strict=True):
        # Two products and a sum: at most a fused multiplication apart.
        torch.testing.assert_close(a, b, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=1e-6)


def test_a_compiled_block_takes_the_written_out_formula():
    x = torch.randn(2, 5, 2, 4)
    table = rotary_table(5, 4, 10_000.0, None, x)
    graphs = []

    def seen(graph, inputs):
        graphs.append(graph)
        return graph.forward

    out = torch.compile(rotate, backend=seen, fullgraph=True)(x, *table)
    assert "complex" not in str(graphs[0].code)
    torch.testing.assert_close(out, rotate(x, *table))
