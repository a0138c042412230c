"""An evaluation's directory, read and checked: `results.json`, `validation.json` and the logs beside them.

`topklm.evaluate.write_results` writes it. Both JSON files stand alone: each has its own `provenance` and, under
`files`, names and hashes of its logs, so that a directory which was half replaced or half copied is noticed.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from topklm.errors import ConfigError, DataError

EVALS = "evals"
"""Directory of a run's evaluations: one directory a step in it, named by ten digits."""
RESULTS = "results.json"
VALIDATION = "validation.json"
FORMAT_VERSION = 1
AGAIN = "evaluate the checkpoint again: python -m apps.eval"

Sample = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of one checkpoint left. Made by `read_evaluation`."""

    path: Path
    """Its directory."""
    harness: dict[str, Any] | None
    """`results.json` in lm-evaluation-harness's schema; None if only the validation was done."""
    validation: dict[str, Any] | None
    """`validation.json`; None if there was none."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the figures come from; see `topklm.evaluate.evaluation_provenance`."""
        content = self.harness or self.validation or {}
        return content["provenance"]

    @cached_property
    def figures(self) -> dict[str, float]:
        """The validation's figures, `val/ppl@256` and so on; empty without a validation."""
        return {} if self.validation is None else self.validation["figures"]

    def samples(self, task: str) -> list[Sample] | None:
        """The task's per-sample log, or None if it was not kept."""
        return self._log(self.harness, task)

    def documents(self, view: str) -> list[Sample] | None:
        """The validation's log by document for a view such as `256`, or None if it was not kept."""
        return self._log(self.validation, view)

    def _log(self, content: dict[str, Any] | None, key: str) -> list[Sample] | None:
        entry = (content or {}).get("files", {}).get(key)
        if entry is None:
            return None
        return _read_log(self.path / entry["name"], entry["sha256"])


@lru_cache(maxsize=4)  # a task has several figures, and a twin
def _read_log(path: Path, sha256: str) -> list[Sample]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def find_evaluation(path: Path) -> Path:
    """The directory of the evaluation that `path` stands for: itself, or the newest of a run. Raises `ConfigError`."""
    for directory in (path / EVALS, path):
        found = sorted(p for p in directory.glob("*") if re.match(r"\d{10}", p.name) and _is_evaluation(p))
        if found:
            newest = found[-1].name[:10]
            # A directory with more than the step in its name is of settings that someone chose for themselves.
            return next((p for p in found if p.name == newest), found[-1])
    if _is_evaluation(path):
        return path
    there = "" if path.exists() else "; it does not exist"
    raise ConfigError(f"{path} holds no evaluation ({EVALS}/STEP/{RESULTS}){there}; make one: python -m apps.eval")


def read_evaluation(path: Path) -> Evaluation:
    """Read the evaluation in a directory, and check that its logs are those that its results were made of.

    Raises `ConfigError` if there is none, `DataError` with everything that is wrong with it.
    """
    path = find_evaluation(path)
    problems: list[str] = []
    contents = [_read(path, name, problems) for name in (RESULTS, VALIDATION)]
    both = [content["provenance"] for content in contents if content is not None]
    if len(both) == 2 and not problems and not same_model(*both):
        problems.append(f"{RESULTS} and {VALIDATION} are of different models")
    if problems:
        raise DataError(f"{path} is not a whole evaluation; {AGAIN}:\n  - " + "\n  - ".join(problems))
    return Evaluation(path, *contents)


def same_model(a: Sample, b: Sample) -> bool:
    """Whether two provenances are of one model: the same checkpoint at the same alpha, with the same tokenizer.

    In training a checkpoint is evaluated before it is written and has no hash: of one run, its step tells which it is.
    """
    hashes = {a.get("checkpoint_sha256"), b.get("checkpoint_sha256")} - {None}
    return len(hashes) < 2 and all(a.get(key) == b.get(key) for key in ("step", "alpha", "tokenizer_sha256"))


def _is_evaluation(path: Path) -> bool:
    return any((path / name).is_file() for name in (RESULTS, VALIDATION))


def _read(path: Path, name: str, problems: list[str]) -> dict[str, Any] | None:
    if not (path / name).is_file():
        return None
    try:
        content = json.loads((path / name).read_text(encoding="utf-8"))
    except ValueError as error:
        problems.append(f"{name} is not JSON ({error})")
        return None
    needed = "results" if name == RESULTS else "figures"
    if not isinstance(content, dict) or not isinstance(content.get(needed), dict):
        problems.append(f"{name} holds no {needed}")
        return None
    if not isinstance(content.get("provenance"), dict) or content.get("format_version") != FORMAT_VERSION:
        problems.append(f"{name} was not written by this project (format {FORMAT_VERSION}): no provenance")
        return None
    for entry in content.get("files", {}).values():
        file = path / entry["name"]
        if not file.is_file():
            problems.append(f"{file.name} is missing")
        elif hashlib.sha256(file.read_bytes()).hexdigest() != entry["sha256"]:
            problems.append(f"{file.name} is not the log that {name} was made of")
    return content
