"""Steered texts as they are kept: JSON Lines, a cell (neuron, offset) at a time, so that nothing is generated twice."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from topklm.errors import ConfigError, Problem
from topklm.interp.neurons import Neuron

log = logging.getLogger("topklm.interp")
SAMPLES = "samples.jsonl"
SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One text."""

    neuron: Neuron | None
    """The steered neuron; None: none, the model as it is."""
    offset: float
    """What was added to its pre-activation at every position."""
    sample: int
    """Its number: texts of one number are made with the same random numbers, whatever is steered."""
    text: str
    """What follows the prompt."""
    ids: list[int]
    """Its tokens, up to but without an EOS that ends it."""
    nll: float
    """-ln p of `ids` after the prompt under the model as it is, in nats, summed."""
    finish_reason: str
    """Why it ends: stop, eos, length, context."""


Key = tuple[Neuron | None, float]


class SampleStore:
    """The texts of one measurement, in a directory or (None) in memory only.

    A directory with texts of the same `settings` is gone on with; what an interruption left of a cell is dropped.
    Raises `ConfigError` if its texts are of other settings and are not to be replaced (`overwrite`).
    """

    def __init__(
        self, directory: Path | None, settings: Mapping[str, Any], n_samples: int, overwrite: bool = False
    ) -> None:
        self._directory, self._n = directory, n_samples
        self._cells: dict[Key, list[Sample]] = {}
        if directory is None:
            return
        wanted = json.loads(json.dumps(settings))
        there = self._read_settings(directory)
        if there is not None and there != wanted and not overwrite:
            other = ", ".join(sorted(k for k in wanted.keys() | there.keys() if wanted.get(k) != there.get(k)))
            raise ConfigError(
                [Problem("out", f"{directory} holds texts with another {other}; give another out, or overwrite=true")]
            )
        directory.mkdir(parents=True, exist_ok=True)
        if there != wanted:
            (directory / SAMPLES).unlink(missing_ok=True)
            _replace(directory / SETTINGS, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
        else:
            self._read()

    def get(self, neuron: Neuron | None, offset: float) -> list[Sample] | None:
        """The texts of a cell in the order of their numbers, or None."""
        return self._cells.get((neuron, offset))

    def add(self, samples: Sequence[Sample]) -> None:
        """Keep all texts of one cell, durably."""
        first = samples[0]
        self._cells[first.neuron, first.offset] = list(samples)
        if self._directory is None:
            return
        with open(self._directory / SAMPLES, "a", encoding="utf-8") as file:
            file.write("".join(map(_line, samples)))
            file.flush()
            os.fsync(file.fileno())

    def __len__(self) -> int:
        return len(self._cells)

    def _read_settings(self, directory: Path) -> dict[str, Any] | None:
        try:
            return json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError([Problem("out", f"{directory / SETTINGS} cannot be read: {error}")]) from error

    def _read(self) -> None:
        assert self._directory is not None
        path = self._directory / SAMPLES
        if not path.exists():
            return
        cells: dict[Key, list[Sample]] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in filter(None, lines):
            try:
                sample = _sample(json.loads(line))
            except (ValueError, KeyError, TypeError):  # half a line, which an interruption left
                continue
            cells.setdefault((sample.neuron, sample.offset), []).append(sample)
        for key, cell in cells.items():
            if sorted(sample.sample for sample in cell) == list(range(self._n)):
                self._cells[key] = sorted(cell, key=lambda sample: sample.sample)
        kept = [sample for cell in self._cells.values() for sample in cell]
        if len(kept) != len(lines) - 1:  # the last is empty
            log.info("%s: an unfinished cell is made again", path)
            _replace(path, "".join(map(_line, kept)))


def _line(sample: Sample) -> str:
    record = {"neuron": None if sample.neuron is None else str(sample.neuron)}
    record |= {key: value for key, value in asdict(sample).items() if key != "neuron"}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _sample(record: dict[str, Any]) -> Sample:
    neuron = record.pop("neuron")
    if neuron is not None:
        layer, index = map(int, neuron.split(":"))
        neuron = Neuron(layer, index)
    return Sample(neuron=neuron, **record)


def _replace(path: Path, content: str) -> None:
    part = path.with_name(f"{path.name}.tmp")
    part.write_text(content, encoding="utf-8")
    os.replace(part, path)
