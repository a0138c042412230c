"""Every activation on a GPU: selections of the CPU, training with thresholds, compiled, and no wait for the device."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "sparsity"))

import tiny_stack as tiny
from cases import CASES, DIM, make

from topklm.sparsity import ActivationSteps, activation_tensors, set_alpha

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_selects_what_the_cpu_selects(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(64, 3, DIM, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[:, 0] = (x[:, 0] * 2).round()
    if name != "stat_topk":
        x[0, 0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    here, there = make(CASES[name]), make(CASES[name])
    there.to(torch.device("cuda"))
    selected = there.selected(x.cuda()).cpu()
    if name == "stat_topk":
        assert (selected != here.selected(x)).double().mean() < 1e-3  # sums in another order
        return
    assert torch.equal(selected, here.selected(x))
    for alpha in (None, torch.tensor(0.5)):
        torch.testing.assert_close(there(x.cuda(), alpha).cpu(), here(x, alpha), equal_nan=True, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["topk", "grouptopk", "batchtopk", "jumprelu", "stat_topk"])
@pytest.mark.parametrize("compiled", [False, True])
def test_it_trains_there_as_here(name: str, compiled: bool) -> None:
    cfg = dataclasses.replace(CASES[name], n_dense_tail=2)
    torch._dynamo.reset()
    here, there = tiny.make_stack(cfg), tiny.make_stack(cfg).cuda()
    if compiled:
        tiny.checkpoint_blocks(there, "full")
        tiny.compile_blocks(there, "forward", fullgraph=True)
    expected = tiny.train_steps(here, 6, 3)
    found = tiny.train_steps(there, 6, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    for key, tensor in activation_tensors(there).items():
        assert tensor.is_cuda
        torch.testing.assert_close(tensor.cpu(), activation_tensors(here)[key], rtol=0, atol=2e-3)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", [name for name in CASES if name != "normtopk"])
def test_a_step_does_not_wait_for_the_device(name: str) -> None:
    model = tiny.make_stack(dataclasses.replace(CASES[name], n_dense_tail=2)).cuda()
    steps, batch = ActivationSteps(model), tiny.make_batch(0).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    found = torch.zeros((), device="cuda")

    def step() -> None:
        steps.before(0)
        tiny.loss_of(model, batch).backward()
        steps.add()
        optimizer.step()
        optimizer.zero_grad()
        steps.finish(1.0, found)

    set_alpha(model, 0.5)
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
