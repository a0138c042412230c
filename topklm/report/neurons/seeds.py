"""The same comparison over seeds: what one pair of twins shows may be its seed's."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from topklm.report.neurons.read import Measured
from topklm.report.neurons.series import newest
from topklm.report.neurons.verdict import extrapolated_gap, gap, topk_layers, twins
from topklm.report.student import t_quantile
from topklm.report.table import Column, Table

POWER = 0.8
"""Share of cases in which what is called detectable would be detected."""
_GAPS = {
    "raw": "as they are",
    "corrected": "read alike",
    "limit": "read alike, extrapolated",
    "training": "against its own initial weights",
}
COLUMNS = (
    Column("model", "models"),
    Column("gap", "difference of token entropy (nats)"),
    Column("seeds", "seeds"),
    Column("mean", "mean", "{:+.2f}"),
    Column("low", "95 % from", "{:+.2f}"),
    Column("high", "to", "{:+.2f}"),
    Column("detectable", "detectable", "{:.2f}"),
    Column("values", "by seed"),
)


@dataclass(frozen=True)
class OverSeeds:
    """One difference of mean token entropy, TopK minus the other, over seeds."""

    model: str
    """The runs that differ in the seed alone."""
    gap: str
    """Which difference: raw, corrected (the twin read through the same cut), limit (corrected, extrapolated over
    corpus size), training (against the TopK model's own initial weights)."""
    values: tuple[float, ...]
    """Nats, a value per seed."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % by Student's t over the seeds."""
        half = t_quantile(0.975, len(self.values) - 1) * self._error
        return self.mean - half, self.mean + half

    @property
    def detectable(self) -> float:
        """The difference that so many seeds of this spread tell from 0 in about 80 % of the cases, at 5 % two-sided:
        (t_0.975 + t_0.8) sd / sqrt(n), nats."""
        freedom = len(self.values) - 1
        return (t_quantile(0.975, freedom) + t_quantile(POWER, freedom)) * self._error

    @property
    def _error(self) -> float:
        return statistics.stdev(self.values) / math.sqrt(len(self.values))


def over_seeds(measured: Sequence[Measured]) -> list[OverSeeds]:
    """Per kind of TopK model with at least two seeds its differences, each seed's model against its own twin. A
    difference that not every seed has is left out."""
    shown = newest(measured)
    kinds: dict[str, list[Measured]] = {}
    for each in shown:
        if each.is_topk and not each.is_control and "topk" in each.bundle.meta.layers.values():
            kinds.setdefault(_kind(each), []).append(each)
    found = []
    for models in kinds.values():
        if len({model.bundle.meta.model.model.get("seed") for model in models}) == len(models) > 1:
            rows = [_gaps(model, shown) for model in models]
            for name in _GAPS:
                values = tuple(row[name] for row in rows if name in row)
                if len(values) == len(models):
                    found.append(OverSeeds(", ".join(model.name for model in models), name, values))
    return found


def seed_statements(found: Sequence[OverSeeds]) -> list[str]:
    """A sentence per kind of model: the corrected difference, and whether it is one."""
    statements = []
    for each in (one for one in found if one.gap == "corrected"):
        low, high = each.interval
        told = (high < 0 or low > 0) and abs(each.mean) >= each.detectable
        verdict = "inconclusive" if not told else "more selective" if high < 0 else "less selective"
        limit = next((one for one in found if one.model == each.model and one.gap == "limit"), None)
        text = (
            f"Over {len(each.values)} seeds ({each.model}), read alike: {verdict}; the mean token entropy of the TopK "
            f"layers differs by {each.mean:+.2f} nats from the dense twins' (95 % interval over seeds {low:+.2f} to "
            f"{high:+.2f}; so many seeds would show {each.detectable:.2f})."
        )
        if limit is not None:
            a, b = limit.interval
            text += f" Extrapolated over corpus size {limit.mean:+.2f} ({a:+.2f} to {b:+.2f})."
            if verdict == "more selective" and b >= 0:
                text += " So on more tokens it may not be."
        statements.append(text)
    return statements


def seed_table(found: Sequence[OverSeeds]) -> Table:
    """All differences over seeds."""
    rows = [
        {
            "model": each.model, "gap": _GAPS[each.gap], "seeds": len(each.values), "mean": each.mean,
            "low": each.interval[0], "high": each.interval[1], "detectable": each.detectable,
            "values": ", ".join(f"{value:+.2f}" for value in each.values),
        }
        for each in found
    ]  # fmt: skip
    note = (
        "Mean over the TopK layers, TopK minus dense (in the last row: its own initial weights), each seed against its "
        "own twin; interval by Student's t over seeds; detectable: at 5 % in about 80 % of the cases."
    )
    return Table("Over seeds", note, COLUMNS, rows)


def _gaps(topk: Measured, shown: Sequence[Measured]) -> dict[str, float]:
    found = {}
    for twin in twins(topk, shown, cut=True)[:1]:
        layers = topk_layers(topk, twin)
        found["corrected"] = gap(topk, twin, layers).difference
        limit, both = extrapolated_gap(topk, twin, layers)
        if both == layers:
            found["limit"] = limit
        for bare in twins(topk, shown, cut=False)[:1]:
            found["raw"] = gap(topk, bare, layers).difference
        for own in (each for each in shown if each.run == topk.run and each.is_initial):
            found["training"] = gap(topk, own, layers).difference
    return found


def _kind(each: Measured) -> str:
    """Equal for models that differ in the seed alone."""
    model = each.bundle.meta.model
    shape = {key: value for key, value in model.model.items() if key != "seed"}
    return json.dumps([shape, model.topk, each.step, str(each.bundle.meta.reading)], sort_keys=True, default=str)
