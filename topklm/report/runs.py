"""A run's directory, read: `config.yaml`, `metrics.jsonl` and `provenance.json`."""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from topklm.config import read_yaml
from topklm.errors import ConfigError, DataError, Problem, TopklmError

log = logging.getLogger("topklm.report")

Line = dict[str, Any]

# What is used of a configuration: what it must be, and whether it must be there.
_USED: dict[str, tuple[type, str, bool]] = {
    "steps": (int, "a whole number", True),
    **dict.fromkeys(("model", "data"), (dict, "a section", True)),
    **dict.fromkeys(("topk", "distributed", "checkpoint"), (dict, "a section", False)),
    "data.sources": (dict, "a mapping of names to weights", False),
    "topk.activation": (str, "text", False),
    "topk.k_per_layer": (list, "a list", False),
    "topk.options": (dict, "a section", False),
    **dict.fromkeys(
        ("topk.k", "topk.n_dense_tail", "topk.anneal_steps", "model.dim", "model.n_layers"),
        (int, "a whole number", False),
    ),
}
_RECORDED: dict[str, type] = {
    **dict.fromkeys(("data_fingerprint", "tokenizer_sha256", "device"), str),
    **dict.fromkeys(("n_parameters", "ranks"), int),
    "versions": dict,
    **dict.fromkeys(("versions.topklm", "versions.torch"), str),
}

WITHOUT_K = ("identity", "relu")
"""Activations whose configuration has a k that does nothing."""


@dataclass(frozen=True)
class Run:
    """What one training run left behind."""

    name: str
    """The run's own name, or its directory's where two runs have the same."""
    path: Path
    """The run's directory, as it was given."""
    config: dict[str, Any]
    """`config.yaml`, as a plain dictionary."""
    training: list[Line]
    """Lines of `metrics.jsonl` with a training loss, oldest first."""
    validation: list[Line]
    """Lines of `metrics.jsonl` with a validation loss, oldest first."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """`provenance.json`: what decided the run and is not in its configuration. Empty for a run without that file."""

    def setting(self, key: str) -> Any:
        """The value of a dotted key of the configuration; None if it or a section above it is missing or null."""
        return _at(self.config, key)

    def recorded(self, key: str) -> Any:
        """The value of a dotted key of `provenance`; None if it is not known."""
        return _at(self.provenance, key)

    def short_hash(self, key: str) -> str | None:
        """The first 12 hex digits of a hash in `provenance`; None if it is not known."""
        value = self.recorded(key)
        return None if value is None else value[:12]

    @property
    def is_dense(self) -> bool:
        """Whether this is a dense model: there is no section `topk`."""
        return self.config.get("topk") is None

    @property
    def k(self) -> int | str | None:
        """`topk.k`, or the numbers of `topk.k_per_layer`; None for a dense model and where k does nothing."""
        if self.setting("topk.activation") in WITHOUT_K or self.setting("topk.options.z") is not None:
            return None
        each = self.setting("topk.k_per_layer")
        return " ".join(map(str, each)) if each else self.setting("topk.k")

    @property
    def step(self) -> int:
        """Optimizer steps done, as far as they are logged."""
        return max((line["global_step"] for line in (*self.training[-1:], *self.validation[-1:])), default=0)

    @property
    def tokens_per_step(self) -> float:
        """Training tokens in one optimizer step; NaN if no training step is logged."""
        for line in reversed(self.training):
            tokens = number(line, "optim/total_tokens")
            if line["global_step"] and tokens is not None and math.isfinite(tokens):
                return tokens / line["global_step"]
        return float("nan")

    @property
    def views(self) -> list[str]:
        """How perplexity was measured, smallest context first: `256` is its context in tokens, `256-stride64` in
        windows that overlap, `256-documents` in windows of one document each."""
        keys = {key for line in self.validation for key in line}
        found = [match[1] for key in keys if (match := re.fullmatch(r"val/ppl@(\d+(-\S+)?)", key))]
        return sorted(found, key=_by_context)

    @property
    def seeds(self) -> str:
        """The run's seed, and those of the weights and the data where they are others."""
        seed = self.setting("seed")
        others = [f"{name} {self.setting(key)}" for name, key in (("weights", "model.seed"), ("data", "data.seed"))
                  if self.setting(key) not in (None, seed)]  # fmt: skip
        return " ".join([str(seed if seed is not None else "unknown"), *(f"({other})" for other in others)])


def all_views(runs: Sequence[Run]) -> list[str]:
    """The views of all runs, smallest context first."""
    return sorted({view for run in runs for view in run.views}, key=_by_context)


def _by_context(view: str) -> tuple[int, str]:
    return int(view.partition("-")[0]), view


def number(line: Line, key: str) -> float | None:
    """The value of a metric: None if it was not logged, NaN if it was not finite (`null` in the file)."""
    if key not in line:
        return None
    value = line[key]
    return float("nan") if value is None else float(value)


def read_run(path: Path) -> Run:
    """Read one run's directory.

    Raises `ConfigError` if the directory or one of its files is missing, or a setting that is used here is of the wrong
    kind; `DataError` if `provenance.json` or a line of `metrics.jsonl` is broken. Only a last line without its line end
    may be: the run is writing it, or was killed while it did.
    """
    if not path.is_dir():
        raise ConfigError(f"there is no directory {path}; give the dump_dir of a run")
    for file, advice in (("config.yaml", "is it the dump_dir of a run?"), ("metrics.jsonl", "has it been started?")):
        if not (path / file).is_file():
            raise ConfigError(f"{path} has no {file}; {advice}")
    lines = _read_lines(path / "metrics.jsonl")
    config = _read_config(path / "config.yaml")
    return Run(
        name=str(config.get("name") or path.resolve().name),
        path=path,
        config=config,
        training=[line for line in lines if "loss/out" in line or "loss/out_noncausal" in line],
        validation=[line for line in lines if any(key.startswith("val/") for key in line)],
        provenance=_read_provenance(path / "provenance.json"),
    )


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read runs to compare: each once, with at least one logged training step and one validation.

    Raises `ConfigError` with every problem of every run.
    """
    problems: list[Problem] = []
    runs: list[Run] = []
    seen: set[Path] = set()
    for i, path in enumerate(map(Path, paths)):
        if path.resolve() in seen:
            problems.append(Problem(f"runs[{i}]", f"{path} is given twice"))
            continue
        seen.add(path.resolve())
        try:
            run = read_run(path)
        except ConfigError as error:
            problems += [problem.under(f"runs[{i}]") for problem in error.problems]
            continue
        except TopklmError as error:
            problems.append(Problem(f"runs[{i}]", str(error)))
            continue
        runs.append(run)
        if not run.training:
            problems.append(Problem(f"runs[{i}]", f"{path} has not logged a training step yet (logging.freq)"))
        if not run.views:
            problems.append(Problem(f"runs[{i}]", f"{path} has validated nothing yet; was it run with eval=null?"))
    if problems:
        raise ConfigError(problems)
    return _with_distinct_names(runs)


def _read_config(path: Path) -> dict[str, Any]:
    config = read_yaml(path)
    if not config:
        raise ConfigError(f"{path} is empty; restore it from the run")
    problems = []
    for key, (kind, name, needed) in _USED.items():
        value = _at(config, key)
        wrong = needed if value is None else isinstance(value, bool) or not isinstance(value, kind)
        if wrong and isinstance(_at(config, key.rpartition(".")[0]), dict):  # else the section is to blame
            problems.append(Problem(key, f"{value!r} is not {name} in {path}; is it the config.yaml of a run?"))
    sources = _at(config, "data.sources")
    for name, weight in sources.items() if isinstance(sources, dict) else ():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            problems.append(Problem("data.sources", f"{weight!r} is not a weight above 0 for {name} in {path}"))
    if problems:
        raise ConfigError(problems)
    return config


def _read_provenance(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); restore it, or remove it") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no object; restore it, or remove it")
    for key, kind in _RECORDED.items():
        value = _at(found, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise DataError(f"{path}: {key} is {value!r}, not {kind.__name__}; restore the file, or remove it")
    return found


def _at(node: Any, key: str) -> Any:
    """The value of a dotted key in nested dictionaries (all of it for an empty key); None if there is none."""
    for part in key.split(".") if key else ():
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _read_lines(path: Path) -> list[Line]:
    *whole, rest = path.read_bytes().split(b"\n")
    lines = [_parse(text, f"{path}, line {i}") for i, text in enumerate(whole, 1) if text.strip()]
    if rest.strip():
        try:
            lines.append(_parse(rest, f"{path}, line {len(whole) + 1}"))
        except DataError:
            log.warning("%s: the last line is half written and left out", path)
    return lines


def _parse(text: bytes, where: str) -> Line:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); remove it or restore the file") from error
    if not isinstance(line, dict) or type(line.get("global_step")) is not int:
        raise DataError(f"{where} is no metrics line: it has no whole number global_step")
    for key, value in line.items():
        room = key.split("/")[0]
        if room != key and value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise DataError(f"{where}: {key} is {value!r}, not a number")
    return line


def _with_distinct_names(runs: list[Run]) -> list[Run]:
    """The same runs; those that share a name are called by their directory instead."""
    count = Counter(run.name for run in runs)
    return [replace(run, name=str(run.path)) if count[run.name] > 1 else run for run in runs]
