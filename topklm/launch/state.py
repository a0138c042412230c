"""How far a run of a sweep is, and whether what is there is what the sweep asks for."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from topklm.budget.setting import global_batch
from topklm.checkpoint import list_checkpoints
from topklm.config import build, to_dict
from topklm.errors import ConfigError, Problem
from topklm.launch.plan import PlannedRun
from topklm.train import TrainConfig

State = Literal["new", "partial", "finished", "failed", "busy"]
"""new: no checkpoint; partial: has one, and goes on from it; finished: the last step is saved; failed: the last attempt
ended with an error; busy: a process is training it."""

OUTCOME = "outcome.json"
"""How the last attempt of a run ended, in the run's directory."""

# What training fills in where the configuration leaves it open.
_OPEN: dict[str, Any] = {
    "data.add_bos": None,
    "data.add_eos": None,
    "model.vocab_size": -1,
    "topk.anneal_steps": None,
}
# What changes neither the weights beyond rounding nor what is measured.
_INDIFFERENT = (
    "name", "dump_dir", "logging", "data.batch_size", "data.load_async", "data.prefetch_size",
    "data.verify", "grad_acc_steps", "model.max_seqlen", "model.loss_chunk", "checkpoint.dump", "checkpoint.eval",
    "checkpoint.async_save", "checkpoint.path",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How far one run is."""

    state: State
    step: int
    """Steps of its newest checkpoint; 0 without one."""
    reason: str = ""
    """Of a failed run: how it ended."""


def state_of(run: PlannedRun) -> RunState:
    """How far a run is. Checkpoints are not read, only found: training itself checks the one that it goes on from."""
    found = list_checkpoints(run.config.checkpoint_dir)
    step = int(found[-1].name) if found else 0
    if is_locked(run.dump_dir):
        return RunState(state="busy", step=step)
    if step >= run.config.steps:
        return RunState(state="finished", step=step)
    if reason := why_failed(run.dump_dir):
        return RunState(state="failed", step=step, reason=reason)
    return RunState(state="partial" if found else "new", step=step)


def why_failed(dump_dir: Path) -> str:
    """How the last attempt failed, in one line; empty if it did not."""
    try:
        outcome = json.loads((dump_dir / OUTCOME).read_text())
        return "" if outcome["state"] != "failed" else str(outcome["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def is_locked(dump_dir: Path) -> bool:
    """Whether a training holds the lock of this directory."""
    try:
        with (dump_dir / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: others may look at the same time
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def contradictions(runs: Sequence[PlannedRun], ranks: int) -> list[Problem]:
    """Every run that has checkpoints of another configuration than the one asked for now, with the keys that differ.

    An open global batch size is the one of `ranks` processes: a run goes on with the one it has, but the runs that
    have not begun would get this one.
    """
    problems = []
    for run in runs:
        found = list_checkpoints(run.config.checkpoint_dir)
        if not found:
            continue
        try:
            # Built anew, so that a key that did not exist then has the default that it had without being there.
            stored = to_dict(build(TrainConfig, json.loads((found[-1] / "params.json").read_text())))
        except (OSError, ValueError):
            continue  # a damaged checkpoint: training names it and takes the one before
        except ConfigError as error:
            problems.append(Problem(run.name, f"{found[-1]} was not written by this version of this project: {error}"))
            continue
        asked = to_dict(run.config)
        asked["data"]["global_batch_size"] = global_batch(run.config, ranks)
        differ = differing(asked, stored)
        if differ:
            done = (
                "is finished" if int(found[-1].name) >= run.config.steps else f"has checkpoints up to {found[-1].name}"
            )
            told = ", ".join(f"{key} is {now!r} now and was {then!r}" for key, (now, then) in differ.items())
            problems.append(
                Problem(
                    run.name,
                    f"{done} in {run.dump_dir} with another configuration: {told}; give the sweep another dump_dir, or "
                    "remove that directory to train it again",
                )
            )
    return problems


def differing(asked: dict[str, Any], stored: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys in which a configuration differs from the one that a run was trained with: {key: (asked, stored)}."""
    now, then = _leaves(asked), _leaves(stored)
    for leaves in (now, then):  # however the path is written
        leaves["data.root_dir"] = os.path.abspath(leaves["data.root_dir"])
    keys = [key for key in dict.fromkeys([*now, *then]) if not _is_under(key, _INDIFFERENT)]
    if asked.get("init_from") is not None:  # the model is filled in from there
        keys = [key for key in keys if not _is_under(key, ("model",))]
    differ = {}
    for key in keys:
        is_open = key in _OPEN and now.get(key) == _OPEN[key]
        if now.get(key) != then.get(key) and not is_open:
            differ[key] = (now.get(key), then.get(key))
    return differ


def last_step(dump_dir: Path) -> int:
    """The step of the newest line of metrics.jsonl, for a progress bar; 0 if there is none."""
    try:
        with (dump_dir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            found = re.findall(rb'"global_step": (\d+)', file.read())
    except OSError:
        return 0
    return int(found[-1]) if found else 0


def _is_under(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(section + ".") for section in sections)


def _leaves(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, f"{path}{key}.")
        else:
            leaves[path + key] = list(value) if isinstance(value, tuple) else value
    return leaves
