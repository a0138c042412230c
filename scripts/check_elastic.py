"""Does a run stay the same when it goes on with other ranks, meshes, micro-batches and accumulation?

    python scripts/check_elastic.py config=configs/quickstart/topk.yaml [key=value ...] [--out DIR] [--tolerance 1e-5]

Each chain of legs is one run that is stopped by a signal to one rank, or killed, at every tenth step, and goes on in
another world; beside it, the same run on one rank without a stop. Compared are, at every step, the tokens and targets
of the whole batch in their order; over the ten steps after each change, the losses; at each change, the checkpoint
that one world wrote with the one that one rank wrote: weights, moments, thresholds, and `step`, exactly.

TopK is discontinuous: in fp32, rounding chooses other entries in some row every few steps, and losses then differ by
about 1e-3. So chains with an activation are computed in fp64, where the tolerance holds, and the dense twin in fp32,
where Adam turns the rounding of a gradient near 0 into a part of a step: states may differ by 1e-3 of their largest
entry there, by the tolerance in fp64.

Prints a table in Markdown. Exit code 6: something differs by more than the tolerance.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topklm.errors import EXIT_PREEMPTED, ParityError, PeerError

LEG_STEPS = 10
SETTINGS = [
    "logging.freq=1", "eval=null", "distributed.model_dtype=fp32", "data.global_batch_size=8",
    f"checkpoint.dump={{every: {LEG_STEPS}, keep: 0}}", "data.load_async=false",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Leg:
    """A part of a chain."""

    ranks: int
    micro_batch: int
    replicate: int | None = None
    """Copies of the sharded weights; None: one."""
    end: str = "signal"
    """How it ends: signal (SIGUSR1 to the last rank, while a step is computed), kill (SIGKILL to all, two steps after
    a checkpoint)."""

    @property
    def mesh(self) -> str:
        return f"{self.replicate} x {self.ranks // self.replicate}" if self.replicate else f"1 x {self.ranks}"

    @property
    def settings(self) -> list[str]:
        shard = self.ranks // (self.replicate or 1)
        mesh = [f"distributed.dp_replicate={self.replicate or 1}", f"distributed.dp_shard={shard}"]
        return [f"data.batch_size={self.micro_batch}", *mesh]


RANKS = (
    Leg(ranks=1, micro_batch=4),
    Leg(ranks=2, micro_batch=2, end="kill"),
    Leg(ranks=4, micro_batch=2),
    Leg(ranks=1, micro_batch=3),
)
MESHES = (
    Leg(ranks=1, micro_batch=8, end="kill"),
    Leg(ranks=4, replicate=2, micro_batch=1),
    Leg(ranks=2, micro_batch=3, end="kill"),
    Leg(ranks=4, replicate=2, micro_batch=2),
)
JUMPRELU = "topk={activation: jumprelu, k: 8, options: {weight: 0.1}, n_dense_tail: 1, anneal_ratio: 0.5}"
CHAINS: dict[str, tuple[tuple[Leg, ...], list[str], bool]] = {
    "TopK": (RANKS, [], True),
    "TopK, HSDP": (MESHES, [], True),
    "jumprelu": (RANKS, [JUMPRELU], True),
    "jumprelu, HSDP": (MESHES, [JUMPRELU], True),
    "dense": (RANKS, ["topk=null"], False),
    "dense, HSDP": (MESHES, ["topk=null"], False),
}
"""Legs, settings, and whether it is computed in fp64."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A signal that a rank sends to itself."""

    at: int | str
    """The step, from 0, whose batch the rank has just been given, or a function that the trainer calls."""
    rank: int | None = None
    """None: every rank."""
    signum: int = signal.SIGUSR1


def run_ranks(
    args: Sequence[str],
    ranks: int,
    records: Path,
    *,
    stops: Sequence[Stop] = (),
    fp64: bool = False,
    patience: float = 60,
    limit: float = 1800,
) -> list[int]:
    """Run `apps.train` with `args` on gloo ranks of this machine; their exit codes (negative: of a signal).

    Who is still there `patience` seconds after the first has ended, or `limit` after the start, is killed. The
    processes are forked from a server that has imported everything. Each writes into `records` what it printed
    (`{rank}.log`), the batches that it was given (`{rank}.batches.jsonl`), and the state that it began with
    (`{rank}.start.json`).
    """
    records.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["topklm.train", "torch.distributed.checkpoint", "torch._dynamo"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_rank, args=(list(args), rank, ranks, port, records, list(stops), fp64))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    multiprocessing.connection.wait([process.sentinel for process in processes], limit)
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in processes]


def _rank(args: list[str], rank: int, ranks: int, port: int, records: Path, stops: list[Stop], fp64: bool) -> None:
    """One rank, in a process of its own."""
    log = os.open(records / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "check"}
    import torch

    from apps._program import run
    from topklm.train import TrainConfig, parallel, train, trainer

    torch.set_num_threads(1)
    if fp64:
        parallel.DTYPES["fp32"] = torch.float64
        build_model = trainer.build_model
        trainer.build_model = lambda *given: build_model(*given).double()
    mine = {stop.at: stop.signum for stop in stops if stop.rank in (None, rank)}
    for name in filter(lambda at: isinstance(at, str), mine):
        setattr(trainer, name, _signalled(getattr(trainer, name), mine[name]))
    trainer.TrainLoader = _recording(trainer.TrainLoader, records / f"{rank}.batches.jsonl", mine)
    begin = trainer.Trainer.run

    def run_from(self: Any, *given: Any) -> int:
        (records / f"{rank}.start.json").write_text(json.dumps(_start_of(self)))
        return begin(self, *given)

    trainer.Trainer.run = run_from
    run(train, TrainConfig, "train", "", args)


def _signalled(function: Any, signum: int) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signum)
        return function(*args, **kwargs)

    return call


def _recording(loader: Any, path: Path, stops: dict[Any, int]) -> Any:
    """A loader that writes down the rows it hands out."""

    class Recording(loader):
        def __iter__(self) -> Any:
            for batches in super().__iter__():
                parts = [
                    (tokens.tobytes() + targets.tobytes())
                    for batch in batches
                    for tokens, targets in zip(batch.tokens.numpy(), batch.targets.numpy(), strict=True)
                    if targets[0] >= 0  # else a row of padding
                ]
                rows = [hashlib.sha256(part).hexdigest()[:16] for part in parts]
                with path.open("a") as file:
                    file.write(json.dumps({"step": batches.step, "rows": rows, "micro_batches": len(batches)}) + "\n")
                if batches.step in stops:
                    os.kill(os.getpid(), stops[batches.step])
                yield batches

    return Recording


def _start_of(trainer: Any) -> dict[str, Any]:
    """What a rank begins with: step, state of the activations, the numbers that it would draw next."""
    import random

    import numpy as np
    import torch

    from topklm.train.rng import restore_rng, rng_state

    state = rng_state(trainer.world.device)
    draws = [random.random(), np.random.rand(), torch.rand(()).item()]
    restore_rng(state, trainer.world.device)
    activations = {name: tensor.tolist() for name, tensor in trainer.activations.state_dict().items()}
    return {"step": trainer.step, "draws": draws, "activations": activations}


def batches_of(records: Path) -> dict[int, list[str]]:
    """The rows of the whole batch of each step, in their order, from what all ranks wrote down."""
    by_rank: list[dict[int, list[str]]] = []
    while (path := records / f"{len(by_rank)}.batches.jsonl").exists():
        by_rank.append({(line := json.loads(text))["step"]: line["rows"] for text in path.read_text().splitlines()})
    steps = set.intersection(*(set(steps) for steps in by_rank))  # a rank that was killed may lack the last one
    return {
        step: [rows[step][i] for i in range(len(by_rank[0][step])) for rows in by_rank if i < len(rows[step])]
        for step in sorted(steps)
    }


def losses_of(dump_dir: Path) -> dict[int, float]:
    """Loss by step."""
    lines = map(json.loads, (dump_dir / "metrics.jsonl").read_text().splitlines())
    return {line["global_step"]: line["loss/out"] for line in lines if "loss/out" in line}


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint by its key."""
    import torch
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    metadata = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    state = {
        key: torch.empty(stored.size, dtype=stored.properties.dtype)
        for key, stored in metadata.items()
        if isinstance(stored, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    return state


def difference(one: Path, other: Path) -> tuple[float, bool]:
    """Of two checkpoints: (largest difference of a tensor as a share of its largest entry, whether keys and the
    optimizer's steps are equal)."""
    a, b = state_of(one), state_of(other)
    if a.keys() != b.keys():
        return float("inf"), False
    largest, equal = 0.0, True
    for key, tensor in a.items():
        if key.endswith(".step"):
            equal &= bool((tensor == b[key]).all())
        elif tensor.numel():
            scale = max(b[key].abs().max().item(), 1e-30)
            largest = max(largest, (tensor.double() - b[key].double()).abs().max().item() / scale)
    return largest, equal


@dataclass(frozen=True, kw_only=True)
class Change:
    """A leg compared with the run on one rank that was not stopped."""

    chain: str
    dtype: str
    leg: Leg
    accumulation: int
    first: int
    """Its first step, counted from 1, of `LEG_STEPS`."""
    loss: float
    """Largest difference of the losses of its first ten steps."""
    same_batches: bool
    state: float
    """Largest difference of the checkpoint at its end."""
    same_steps: bool

    def holds(self, tolerance: float) -> bool:
        of_state = tolerance if self.dtype == "fp64" else 1e-3
        return self.same_batches and self.same_steps and self.loss <= tolerance and self.state <= of_state

    def row(self) -> str:
        steps = f"{self.first}-{self.first + LEG_STEPS - 1}"
        yes = {True: "yes", False: "NO"}
        cells = (
            self.chain, self.dtype, self.leg.ranks, self.leg.mesh, self.leg.micro_batch, self.accumulation, steps,
            f"{self.loss:.1e}", yes[self.same_batches], f"{self.state:.1e}", yes[self.same_steps],
        )  # fmt: skip
        return "| " + " | ".join(map(str, cells)) + " |"


HEADER = (
    "| chain | dtype | ranks | mesh | micro-batch | accumulation | steps | max abs. loss difference, ten steps "
    "| batches identical | max rel. difference of weights, moments, thresholds at its end | `step` equal |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def check(name: str, legs: Sequence[Leg], args: Sequence[str], out: Path, fp64: bool) -> list[Change]:
    """Run a chain of legs and its reference under `out`. Raises `ParityError` if a leg does not end as it should."""
    args = [*args, *SETTINGS, f"steps={len(legs) * LEG_STEPS}"]
    whole, chain = out / "whole", out / "chain"
    alone = [*args, "data.batch_size=8", f"dump_dir={whole}"]
    _expect({0}, run_ranks(alone, 1, out / "whole.records", fp64=fp64), out)
    expected = batches_of(out / "whole.records")
    changes = []
    for number, leg in enumerate(legs):
        first, records = number * LEG_STEPS, out / f"{number}.records"
        stops = [Stop(at=first + LEG_STEPS - 1, rank=leg.ranks - 1)]
        codes = {EXIT_PREEMPTED}
        if leg.end == "kill":
            stops = [Stop(at=first + LEG_STEPS + 2, signum=signal.SIGKILL)]
            codes = {-signal.SIGKILL, PeerError.exit_code}  # who is killed an instant later has lost the others
        if number == len(legs) - 1:
            stops, codes = [], {0}
        found = run_ranks([*args, *leg.settings, f"dump_dir={chain}"], leg.ranks, records, stops=stops, fp64=fp64)
        _expect(codes, found, records)
        given, losses, wanted = batches_of(records), losses_of(chain), losses_of(whole)
        steps = range(first, first + LEG_STEPS)
        checkpoint = f"checkpoints/{first + LEG_STEPS:010d}"
        state, same_steps = difference(chain / checkpoint, whole / checkpoint)
        lines = [json.loads(line) for line in (records / "0.batches.jsonl").read_text().splitlines()]
        changes.append(
            Change(
                chain=name, dtype="fp64" if fp64 else "fp32", leg=leg, accumulation=lines[0]["micro_batches"],
                first=first + 1, loss=max(abs(losses[step + 1] - wanted[step + 1]) for step in steps),
                same_batches=all(given.get(step) == expected[step] for step in steps), state=state,
                same_steps=same_steps,
            )
        )  # fmt: skip
    return changes


def _expect(codes: set[int], found: list[int], records: Path) -> None:
    if not codes.issuperset(found):
        raise ParityError(f"ranks ended with {found}, expected {codes}; see the logs in {records}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("args", nargs="+", metavar="key=value", help="as those of apps.train")
    parser.add_argument("--out", type=Path, help="where runs and logs stay; otherwise they are removed")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--chain", action="append", choices=CHAINS, help="only this one; may be repeated")
    given = parser.parse_args()
    failed = 0
    print(HEADER, flush=True)
    with contextlib.ExitStack() as stack:
        out = given.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in given.chain or CHAINS:
            legs, settings, fp64 = CHAINS[name]
            place = out / name.replace(", ", "-")
            shutil.rmtree(place, ignore_errors=True)
            try:
                for change in check(name, legs, [*given.args, *settings], place, fp64):
                    failed += not change.holds(given.tolerance)
                    print(change.row(), flush=True)
            except ParityError as error:
                failed += 1
                print(f"{name}: {error}", file=sys.stderr)
    return ParityError.exit_code if failed else 0


if __name__ == "__main__":
    sys.exit(main())
