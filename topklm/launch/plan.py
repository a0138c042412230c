"""From a sweep's configuration to its runs: every configuration whole, every name its own, nothing started."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topklm.config import build, overlay, put, read_yaml, resolved, to_dict
from topklm.errors import ConfigError, Problem
from topklm.launch.config import SweepConfig
from topklm.train import TrainConfig

log = logging.getLogger("topklm.launch")

RUN_YAML = "run.yaml"
"""The configuration that the sweep asked a run for, in the run's directory."""
RESERVED = ("report", "slurm")
_MISSING = object()
_FIELD = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    """Its name, and that of its directory."""
    config: TrainConfig
    """The whole configuration, as `python -m apps.train` gets it."""
    swept: dict[str, Any]
    """The values of all swept keys that it has, also where only other runs change them."""
    seed: int
    """The seed of the sweep, or the configuration's own."""
    twin: str | None = None
    """The dense run that differs in nothing but the TopK; None for a dense run, or where there is none."""

    @property
    def is_dense(self) -> bool:
        return self.config.topk is None

    @property
    def dump_dir(self) -> Path:
        return Path(self.config.dump_dir)

    @property
    def yaml(self) -> Path:
        """The file that trains this run alone: `python -m apps.train config=FILE`."""
        return self.dump_dir / RUN_YAML


def swept_keys(config: SweepConfig) -> list[str]:
    """What differs between the runs, besides seeds, in the order of the file."""
    return list(dict.fromkeys([*(key for settings in config.runs for key in settings), *config.grid]))


def plan_runs(config: SweepConfig) -> list[PlannedRun]:
    """All runs of a sweep, the dense twins first.

    Raises `ConfigError` with every problem of every run: keys and values, names that collide, configurations that
    are there twice, checkpoint directories that are shared.
    """
    problems: list[Problem] = []
    try:
        base = read_yaml(Path(config.base_config))
    except ConfigError as error:
        raise ConfigError([problem.under("base_config") for problem in error.problems]) from error
    tree = overlay(to_dict(TrainConfig()), base)
    tree = overlay(tree, _nested(config.set))
    runs: list[PlannedRun] = []
    twins: dict[str, PlannedRun] = {}
    unused: dict[Problem, None] = {}
    seeds: list[int | None] = [*config.seeds] or [None]
    for point, seed in itertools.product(_points(config), seeds):
        where = ", ".join(f"{key}={_short(value)}" for key, value in point.items())
        try:
            run = _planned(config, tree, point, seed, dense=False, unused=unused)
            runs.append(run)
            if config.twins and not run.is_dense:
                twin = _planned(config, tree, point, seed, dense=True, unused=unused)
                twin = twins.setdefault(_essence(twin.config), twin)
                runs[-1] = dataclasses.replace(run, twin=twin.name)
        except ConfigError as error:
            problems += [Problem(p.key, f"{p.message} (with {where})" if where else p.message) for p in error.problems]
    for problem in unused:
        log.warning("%s has no effect here: %s", problem.key, problem.message)
    runs = _with_twins(runs, list(twins.values()))
    problems = [*dict.fromkeys(problems), *_clashes(runs)]
    if problems:
        raise ConfigError(problems)
    return runs


def _points(config: SweepConfig) -> Iterator[dict[str, Any]]:
    for settings in config.runs or [{}]:
        for values in itertools.product(*config.grid.values()):
            yield {**settings, **dict(zip(config.grid, values, strict=True))}


def _planned(
    config: SweepConfig,
    tree: dict[str, Any],
    point: dict[str, Any],
    seed: int | None,
    *,
    dense: bool,
    unused: dict[Problem, None],
) -> PlannedRun:
    tree = copy.deepcopy(tree)
    problems = [p for key, value in point.items() for p in put(tree, key, copy.deepcopy(value))]
    for key in config.seed_keys if seed is not None else ():
        problems += put(tree, key, seed)
    if dense:
        tree["topk"] = None
    if problems:
        raise ConfigError(problems)
    tree |= {"name": config.name, "dump_dir": config.dump_dir}
    found: list[Problem] = []
    try:
        made = build(TrainConfig, _resolved(tree), unused=found)
    finally:
        unused.update(dict.fromkeys(found))
    whole = to_dict(made)
    swept = {
        key: value
        for key in swept_keys(config)
        if not (dense and key.partition(".")[0] == "topk") and (value := _at(whole, key)) is not _MISSING
    }
    name = formatted((config.twin_name if dense else config.run_name) or _pattern(config, swept, dense), whole)
    dump_dir = str(Path(config.dump_dir) / name)
    if _refers(tree):  # perhaps to these two
        made = build(TrainConfig, resolved({**tree, "name": name, "dump_dir": dump_dir}))
    else:
        made = dataclasses.replace(made, name=name, dump_dir=dump_dir)
    return PlannedRun(name=name, config=made, swept=swept, seed=made.seed if seed is None else seed)


def _refers(tree: dict[str, Any]) -> bool:
    """Whether there are interpolations; most trees have none, and resolving them is slow."""
    return "$" in json.dumps(tree, default=str)


def _resolved(tree: dict[str, Any]) -> dict[str, Any]:
    return resolved(tree) if _refers(tree) else tree


def _at(tree: dict[str, Any], key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return _MISSING
        node = node[part]
    return node


def _pattern(config: SweepConfig, swept: dict[str, Any], dense: bool) -> str:
    parts = ["dense"] if dense else []
    # A whole section has no name of its own: the user must say how its runs are called.
    parts += [f"{key.rpartition('.')[2]}{{{key}}}" for key in swept]
    parts += [f"s{{{config.seed_keys[0]}}}"] if config.seeds else []
    return "-".join(parts) or config.name


def formatted(pattern: str, tree: dict[str, Any]) -> str:
    """A pattern with every {dotted.key} replaced by its value. Raises `ConfigError` if that names no directory."""
    problems: list[Problem] = []

    def value_of(match: re.Match[str]) -> str:
        node: Any = tree
        for part in match[1].split("."):
            if node is None:  # a section that this run does not have
                break
            if not isinstance(node, dict) or part not in node:
                problems.append(Problem("run_name", f"{{{match[1]}}} is no key of a training's configuration"))
                return ""
            node = node[part]
        if isinstance(node, dict | list):
            problems.append(Problem("run_name", f"{{{match[1]}}} is not one value; name a key in it, or give run_name"))
        return "none" if node is None else str(node)

    name = _FIELD.sub(value_of, pattern)
    if not problems and (not _NAME.fullmatch(name) or name in RESERVED):
        taken = f"; {', '.join(RESERVED)} are the sweep's own" if name in RESERVED else ""
        problems.append(Problem("run_name", f"{name!r} is no name: letters, digits and . _ = + - only{taken}"))
    if problems:
        raise ConfigError(problems)
    return name


def _with_twins(runs: list[PlannedRun], twins: list[PlannedRun]) -> list[PlannedRun]:
    """Twins and runs in one list; a dense run among the runs is its own twin's, and is not trained twice."""
    same = {_essence(run.config): run.name for run in runs if run.is_dense}
    renamed = {twin.name: same[key] for twin in twins if (key := _essence(twin.config)) in same}
    kept = [twin for twin in twins if twin.name not in renamed]
    return [*kept, *(dataclasses.replace(run, twin=renamed.get(run.twin or "", run.twin)) for run in runs)]


def _essence(config: TrainConfig) -> str:
    """What a run is, without what it is called."""
    return json.dumps(to_dict(dataclasses.replace(config, name="", dump_dir="")), sort_keys=True, default=str)


def _clashes(runs: list[PlannedRun]) -> Iterator[Problem]:
    names: dict[str, PlannedRun] = {}
    places: dict[Path, str] = {}
    for run in runs:
        other = names.setdefault(run.name, run)
        if other is not run:
            differ = [key for key in {**run.swept, **other.swept} if run.swept.get(key) != other.swept.get(key)]
            differ += ["seed"] if run.seed != other.seed else []
            advice = f"put {', '.join(f'{{{key}}}' for key in differ)} into it" if differ else "they are the same"
            key = "twin_name" if run.is_dense and other.is_dense else "run_name"
            yield Problem(key, f"two runs are called {run.name}; {advice}")
            continue
        if (shared := places.setdefault(run.config.checkpoint_dir.resolve(), run.name)) != run.name:
            yield Problem(
                "checkpoint.path", f"{shared} and {run.name} would share {run.config.checkpoint_dir}; leave it null"
            )


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """{a.b: 1, a: {c: 2}} as {a: {b: 1, c: 2}}."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = _nested(value)
        for part in reversed(str(key).split(".")):
            value = {part: value}
        tree = overlay(tree, value)
    return tree


def _short(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
