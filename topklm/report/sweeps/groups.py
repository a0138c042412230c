"""Runs that differ in the seed alone, as one: means and standard deviations over the seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from topklm.report.sweeps.rows import Row
from topklm.report.sweeps.spread import RatioSpread, Spread


@dataclass(frozen=True)
class Group:
    """One point of a sweep."""

    rows: list[Row]
    """Its runs, a run per seed; unfinished ones too."""

    @property
    def swept(self) -> Mapping[str, Any]:
        return self.rows[0].run.swept

    @property
    def is_dense(self) -> bool:
        return self.rows[0].run.is_dense

    @property
    def planned(self) -> int:
        """Seeds that were planned."""
        return len(self.rows)

    @property
    def finished(self) -> int:
        """Seeds whose run is finished."""
        return sum(row.run.is_finished for row in self.rows)

    def values(self, key: str) -> Spread:
        """A figure over the finished seeds."""
        return Spread(tuple(row.values[key] for row in self.rows if key in row.values))

    def ratios(self, key: str) -> Spread:
        """Ratios to the dense twin of the same seed, over the seeds of which both are finished."""
        return Spread(tuple(row.ratios[key] for row in self.rows if key in row.ratios))

    def differences(self, key: str) -> Spread:
        """Scores less those of the dense twin of the same seed."""
        return Spread(tuple(row.differences[key] for row in self.rows if key in row.differences))

    def ratio_spread(self, key: str) -> RatioSpread:
        """The same, for interval and power."""
        return RatioSpread(self.ratios(key).values)

    @property
    def label(self) -> str:
        """What it is, in words: its swept values."""
        values = ", ".join(f"{key} {shown(value)}" for key, value in self.swept.items())
        return " ".join(part for part in ("dense" if self.is_dense else "", values) if part) or "all"


def group(rows: Sequence[Row]) -> list[Group]:
    """Rows by their swept values, in the order of the sweep, the dense ones first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = json.dumps([not row.run.is_dense, dict(row.run.swept)], sort_keys=True, default=str)
        groups.setdefault(key, []).append(row)
    return sorted((Group(each) for each in groups.values()), key=lambda one: not one.is_dense)


def shown(value: Any) -> str:
    """A swept value as text."""
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else json.dumps(value) if isinstance(value, dict | list) else str(value)
