"""The TopK kernel on a GPU: to the bit what the CPU computes, without a wait, compiled, checkpointed, sharded.

`tests/unit/sparsity/interpreted` has the same of Triton's interpreter, which rounds and compiles as it likes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "sparsity"))

import tiny_stack

from tests.programs import metrics, run_app
from topklm.sparsity import TopKConfig, annealed_topk, set_alpha, set_kernel, topk
from topklm.sparsity.kernels.choice import MAX_DIM, Kernel
from topklm.sparsity.kernels.op import residual_topk

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = [(form, alpha) for form in ("blend", "identity", "relu") for alpha in (None, 0.3, 1.0)]
SHAPES = [(1, 1), (7, 3), (64, 64), (1000, 999), (1024, 64), (2048, 64), (2048, 1), (5000, 64), (MAX_DIM, 64)]


def reference(x: Tensor, k: int, alpha: float | None, form: str) -> Tensor:
    if alpha is None:
        return topk(x, k, "identity" if form == "identity" else "relu")
    return annealed_topk(x, k, torch.tensor(alpha), form)


def numbers(dim: int, dtype: torch.dtype) -> Tensor:
    """[256, D]: bells, ties, everything special, and rows on which the first guess of the search is worth nothing."""
    x = torch.randn(256, dim, generator=torch.Generator().manual_seed(dim))
    x[::4] = (x[::4] * 2).round()
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-40, 1.0, 1.0])[:dim]
    x[1, : len(special)] = special
    x[2], x[3], x[5] = 2.5, torch.nan, -torch.inf
    x[6] = (x[6] * 30).exp()
    x[7, 0] = 1e30
    return x.to(dtype)


def test_a_gpu_takes_it() -> None:
    assert Kernel.of("triton").takes(torch.empty(2, 8, device="cuda"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("form", "alpha"), CASES)
@pytest.mark.parametrize(("dim", "k"), SHAPES)
def test_forward_and_backward_are_those_of_the_cpu(
    dim: int, k: int, form: str, alpha: float | None, dtype: torch.dtype
) -> None:
    update = torch.randn(256, dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    update[::4], update[1:8] = 0, 0
    weight = torch.randn(256, dim, generator=torch.Generator().manual_seed(2)).to(dtype)
    here = [tensor.requires_grad_() for tensor in (numbers(dim, dtype), update)]
    there = [tensor.detach().cuda().requires_grad_() for tensor in here]
    wanted = reference(here[0] + here[1], k, alpha, form)
    value = None if alpha is None else torch.tensor(alpha)
    out, _ = residual_topk(*there, torch.tensor(k), value, form)
    torch.testing.assert_close(out.cpu(), wanted, rtol=0, atol=0, equal_nan=True)
    gradients = torch.autograd.grad(wanted, here, weight)
    for found, gradient in zip(torch.autograd.grad(out, there, weight.cuda()), gradients, strict=True):
        torch.testing.assert_close(found.cpu(), gradient, rtol=0, atol=0, equal_nan=True)


def test_nothing_waits_for_the_device() -> None:
    model, batch = tiny_stack.make_stack(TopKConfig(k=6)).cuda(), tiny_stack.make_batch(0).cuda()
    set_kernel(model, "triton")
    for wait in ("default", "error"):  # the first round compiles
        torch.cuda.set_sync_debug_mode(wait)
        try:
            for alpha in (0.5, 0.25, 0.0):
                set_alpha(model, alpha)
                tiny_stack.loss_of(model, batch).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_more_devices_than_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(4, 64)
    out, _ = residual_topk(x.to("cuda:1"), None, torch.tensor(8), None, "blend")
    assert torch.equal(out.cpu(), topk(x, 8))


@pytest.mark.parametrize("mode", tiny_stack.CHECKPOINTING)
@pytest.mark.parametrize("how", ["eager", "forward", "inplace"])
@pytest.mark.parametrize("block", [tiny_stack.SeamBlock, tiny_stack.PlainBlock])
def test_training_with_moving_alpha(mode: str, how: str, block: type) -> None:
    """Compiled by Inductor: one graph for annealing and one for pure TopK, beside the dense tail's."""
    torch._dynamo.reset()
    counters.clear()
    losses = []
    for kernel in ("torch", "triton"):
        model = tiny_stack.make_stack(TopKConfig(k=6), block).cuda()
        set_kernel(model, kernel)
        if kernel == "triton":
            tiny_stack.checkpoint_blocks(model, mode)
            tiny_stack.compile_blocks(model, how, fullgraph=True)
        losses.append(tiny_stack.train_steps(model, 6, 4, lr=1e-3))
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=2e-4)
    assert counters["stats"]["unique_graphs"] == (0 if how == "eager" else 3)
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_a_sharded_compiled_run_is_the_same_with_and_without(tiny: list[str], mode: str, tmp_path: Path) -> None:
    """FSDP2 in bf16, as `apps.train` sets it up."""
    losses = []
    for kernel in ("torch", "triton"):
        run_app("apps.train", *tiny, f"dump_dir={tmp_path / kernel}", "distributed.model_dtype=bf16",
                "distributed.compile=true", f"distributed.activation_checkpointing={mode}",
                f"distributed.topk_kernel={kernel}")  # fmt: skip
        losses.append(metrics(tmp_path / kernel))
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
