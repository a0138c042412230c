"""The selection and the annealing on a GPU against the CPU, and alpha as a CPU tensor beside it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "sparsity"))

import tiny_stack as tiny

from topklm.sparsity import TopKConfig, alpha_at, annealed_topk, record_health, select, set_alpha, topk

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "k"), [(128, 64), (1024, 64), (2048, 1), (2048, 2048)])
def test_selection_equals_the_cpu(dtype: torch.dtype, dim: int, k: int) -> None:
    x = torch.randn(64, dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[::3] = (x[::3] * 2).round()
    x[1, :5] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])
    assert torch.equal(select(x.to("cuda"), k).cpu().sort().values, select(x, k).sort().values)
    torch.testing.assert_close(topk(x.to("cuda"), k).cpu(), topk(x, k), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("form", ["blend", "identity", "relu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_annealing_equals_the_cpu(form: str, dtype: torch.dtype) -> None:
    alpha = torch.tensor(0.3)
    here = torch.randn(32, 256).to(dtype).requires_grad_()
    there = here.detach().to("cuda").requires_grad_()
    for x in (here, there):
        annealed_topk(x, 16, alpha, form).pow(2).sum().backward()
    assert here.grad is not None
    assert there.grad is not None
    tolerance = 1e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-6
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=tolerance, atol=tolerance)


def test_selection_does_not_wait_for_the_device() -> None:
    x = torch.randn(256, 1024, device="cuda", requires_grad=True)
    topk(x, 64).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        topk(x, 64).sum().backward()
        annealed_topk(x, 64, torch.tensor(0.5)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", tiny.CHECKPOINTING)
@pytest.mark.parametrize("how", ["eager", "forward"])
def test_training_with_moving_alpha_in_float64(mode: str, how: str) -> None:
    """A launched kernel has the alpha of its step, though the next one is set before the device is done."""
    torch._dynamo.reset()
    losses = {}
    for device in ("cpu", "cuda"):
        model = tiny.make_stack(TopKConfig(k=6)).double().to(device)
        if device == "cuda":
            tiny.checkpoint_blocks(model, mode)
            tiny.compile_blocks(model, how)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        steps = []
        for step in range(6):
            set_alpha(model, alpha_at(step, 4))
            loss = tiny.loss_of(model, tiny.make_batch(step).to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps.append(loss.detach())
        losses[device] = [loss.item() for loss in steps]
        with record_health(model) as health, torch.no_grad():
            model(tiny.make_batch(0)[:, :-1].to(device))
        assert health.summary()["topk/l0_max"] <= 6
    torch.testing.assert_close(losses["cuda"], losses["cpu"], rtol=0, atol=1e-9)
