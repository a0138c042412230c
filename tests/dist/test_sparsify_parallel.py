"""TopK blocks under FSDP2 on two gloo ranks, with every checkpointing mode, eager and compiled, against one process."""

from __future__ import annotations

import json
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

from topklm.sparsity import TopKConfig, alpha_at, get_alpha, record_health, set_alpha

WORLD, STEPS, ANNEAL_STEPS, N_LAYERS, N_DENSE = 2, 5, 3, 4, 1
CASES = [(mode, how) for mode in tiny.CHECKPOINTING for how in ("eager", "forward", "inplace")]


def train(model: nn.Module, rank: int = 0, world: int = 1) -> list[float]:
    """Losses of a few steps in which alpha goes 1, 2/3, 1/3, 0, 0; the mean over all ranks."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(STEPS):
        set_alpha(model, alpha_at(step, ANNEAL_STEPS))
        loss = tiny.loss_of(model, tiny.make_batch(step)[rank::world])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if world > 1:
            dist.all_reduce(mean)
        losses.append(mean.item() / world)
    return losses


def worker(rank: int, folder: str) -> None:
    from torch._dynamo.utils import counters
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    results: dict[str, Any] = {}
    for mode, how in CASES:
        torch._dynamo.reset()
        counters.clear()
        model = tiny.make_stack(TopKConfig(k=6, n_dense_tail=N_DENSE), n_layers=N_LAYERS)
        tiny.checkpoint_blocks(model, mode)
        tiny.compile_blocks(model, how, backend="aot_eager")
        for block in model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        with record_health(model) as health, torch.no_grad():
            model(tiny.make_batch(99)[rank::WORLD, :-1])
        health.all_reduce()
        # After a forward without a backward the root's parameters stay gathered; the optimizer that train() makes
        # would take hold of those.
        model.reshard()
        results[f"{mode}-{how}"] = {
            "health": health.summary(),
            "losses": train(model, rank, WORLD),
            "graphs": counters["stats"]["unique_graphs"],
            "breaks": list(counters["graph_break"]),
            "alpha": get_alpha(model),
            "keys": list(model.state_dict()),
            "classes": [type(block).__name__ for block in model.layers],
        }
    if rank == 0:
        (Path(folder) / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fsdp")
    mp.spawn(worker, (str(folder),), nprocs=WORLD)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.dist
@pytest.mark.parametrize(("mode", "how"), CASES)
def test_sharded_equals_one_process(results: dict[str, Any], mode: str, how: str) -> None:
    expected = train(tiny.make_stack(TopKConfig(k=6, n_dense_tail=N_DENSE), n_layers=N_LAYERS))
    dense = tiny.make_stack(None, n_layers=N_LAYERS)
    result = results[f"{mode}-{how}"]
    torch.testing.assert_close(result["losses"], expected, rtol=0, atol=1e-5)
    assert result["alpha"] == 0
    assert result["keys"] == list(dense.state_dict())
    # One graph while annealing, one for the pure path, one for the dense tail; none more as alpha moves.
    assert result["graphs"] == (0 if how == "eager" else 3)
    assert result["breaks"] == []


@pytest.mark.dist
@pytest.mark.parametrize(("mode", "how"), CASES)
def test_health_of_all_ranks_is_that_of_the_whole_batch(results: dict[str, Any], mode: str, how: str) -> None:
    model = tiny.make_stack(TopKConfig(k=6, n_dense_tail=N_DENSE), n_layers=N_LAYERS)
    with record_health(model) as health, torch.no_grad():
        model(tiny.make_batch(99)[:, :-1])
    assert results[f"{mode}-{how}"]["health"] == pytest.approx(health.summary(), abs=1e-6)


@pytest.mark.dist
def test_the_reference_is_not_the_dense_model() -> None:
    """The comparison above would otherwise pass if the activation were lost everywhere."""
    model = tiny.make_stack(None, n_layers=N_LAYERS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(STEPS):
        loss = tiny.loss_of(model, tiny.make_batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    sparse = train(tiny.make_stack(TopKConfig(k=6, n_dense_tail=N_DENSE), n_layers=N_LAYERS))
    assert abs(losses[0] - sparse[0]) < 1e-6  # alpha = 1
    assert abs(losses[-1] - sparse[-1]) > 1e-3
