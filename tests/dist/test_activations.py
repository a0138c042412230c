"""Thresholds and norms on two gloo ranks: the same on both, and those of one process with the same micro-batches."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "sparsity"))

import tiny_stack as tiny
from cases import CASES

from tests.programs import metrics, run_app, torchrun
from topklm import load_model
from topklm.model import ModelConfig, build_model
from topklm.sparsity import ActivationSteps, activation_tensors, alpha_at, set_alpha

pytestmark = pytest.mark.dist
WORLD, STEPS = 2, 5
SIZES = ModelConfig(dim=32, n_layers=3, n_heads=4, multiple_of=8, vocab_size=tiny.VOCAB, max_seqlen=32)
HOW = {"batchtopk": ("full", "eager"), "jumprelu": ("selective", "forward"), "normtopk": ("none", "eager")}


def build(name: str) -> nn.Module:
    cfg = dataclasses.replace(CASES[name], n_dense_tail=1)
    if name == "normtopk":  # knows the names of this model's matrices
        return build_model(SIZES, dataclasses.replace(cfg, options={"every": 2}))
    return tiny.make_stack(cfg, n_layers=3)


def train(model: nn.Module, rank: int | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and the state afterwards; `rank` takes its half of each batch, None both as micro-batches."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    steps = ActivationSteps(model, reduce=rank is not None)
    losses = []
    for step in range(STEPS):
        set_alpha(model, alpha_at(step, 3))
        steps.before(step)
        halves = tiny.make_batch(step).chunk(WORLD)
        mine = halves if rank is None else halves[rank : rank + 1]
        total = torch.zeros(())
        for half in mine:
            loss = tiny.loss_of(model, half)
            (loss / len(mine)).backward()
            steps.add()
            total += loss.detach() / WORLD
        if rank is not None:
            dist.all_reduce(total)
        optimizer.step()
        optimizer.zero_grad()
        steps.finish()
        losses.append(total.item())
    return losses, {name: tensor.detach().clone() for name, tensor in activation_tensors(model).items()}


def worker(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    results = {}
    for name, (mode, how) in HOW.items():
        torch._dynamo.reset()
        model: Any = build(name)
        tiny.checkpoint_blocks(model, mode)
        tiny.compile_blocks(model, how, backend="aot_eager")
        for block in model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        results[name] = train(model, rank)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", HOW)
def test_ranks_agree_and_are_one_process(results: list[dict[str, Any]], name: str) -> None:
    losses, state = train(build(name))
    for rank in results:
        torch.testing.assert_close(rank[name][0], losses, rtol=0, atol=1e-5)
        for key, tensor in rank[name][1].items():
            assert torch.equal(tensor, results[0][name][1][key])
            torch.testing.assert_close(tensor, state[key], rtol=0, atol=1e-4)
    assert any((tensor != tensor.flatten()[0]).any() or tensor.item() for tensor in state.values())


def test_a_run_of_two_ranks_resumes_with_its_thresholds(tiny_run: tuple[list[str], Path]) -> None:
    args, run = tiny_run
    last = run / "checkpoints" / "0000000008"
    losses, before = metrics(run), activation_tensors(load_model(last)[0])
    weights = load_model(last)[0].state_dict()
    shutil.rmtree(last)
    run_app(*torchrun(2), "apps.train", *args)
    assert metrics(run) == losses
    model = load_model(last)[0]
    assert activation_tensors(model).keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in activation_tensors(model).items())
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    assert before["layers.0.measured"] == 8


@pytest.fixture
def tiny_run(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], Path]:
    topk = "{k: 8, n_dense_tail: 1, activation: batchtopk, anneal_ratio: 0.25}"
    args = [
        *request.getfixturevalue("tiny"), "steps=8", "checkpoint.dump={every: 4, keep: 0}", "eval=null",
        f"topk={topk}", f"dump_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    run_app(*torchrun(2), "apps.train", *args)
    return args, tmp_path / "run"
