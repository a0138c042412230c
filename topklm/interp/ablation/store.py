"""Effects as they are kept: JSON Lines, so that nothing is measured twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topklm.errors import ConfigError, Problem
from topklm.interp.ablation.effects import Effect
from topklm.interp.neurons import Neuron

EFFECTS = "effects.jsonl"


class EffectStore:
    """The effects in a directory. The first line of its file says under which settings they were measured.

    Raises `ConfigError` if they are of other settings and are not to be replaced (`overwrite`).
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
        self._path = directory / EFFECTS
        self._effects: dict[tuple[Neuron, str], Effect] = {}
        wanted = json.loads(json.dumps({"settings": settings}))
        lines = self._path.read_text(encoding="utf-8").split("\n") if self._path.exists() else []
        there = _parsed(lines[0]) if lines else None
        if there is not None and there != wanted and not overwrite:
            old = there.get("settings") or {}
            other = ", ".join(sorted(key for key in settings if old.get(key) != wanted["settings"].get(key)))
            told = f"{directory} holds effects with another {other}; give another out, or overwrite=true"
            raise ConfigError([Problem("out", told)])
        if there == wanted:
            found = [Effect.of_record(record) for line in lines[1:] if (record := _parsed(line)) is not None]
            self._effects = {(effect.neuron, effect.variant): effect for effect in found}
        # Written anew without a line that an interruption cut off, so that what is appended begins on its own.
        directory.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(f"{EFFECTS}.tmp")
        part.write_text("".join(map(_line, [wanted, *(e.record() for e in self._effects.values())])), encoding="utf-8")
        os.replace(part, self._path)

    def get(self, neuron: Neuron, variant: str) -> Effect | None:
        return self._effects.get((neuron, variant))

    def add(self, effect: Effect) -> None:
        """Keep it, durably."""
        self._effects[effect.neuron, effect.variant] = effect
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(_line(effect.record()))
            file.flush()
            os.fsync(file.fileno())


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
