"""Points of a sweep against its first one, seed by seed: what the dense twins have no part in."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from topklm.report.sweeps.groups import Group
from topklm.report.sweeps.rows import PERPLEXITY, Rows
from topklm.report.sweeps.spread import RatioSpread
from topklm.report.table import Column, Table

COLUMNS = (
    Column("model", "TopK"),
    Column("first", "over"),
    Column("view", "perplexity @"),
    Column("seeds", "seeds"),
    Column("ratio", "ratio", "{:.3f}"),
    Column("low", "95 % from", "{:.3f}"),
    Column("high", "to", "{:.3f}"),
    Column("detectable", "detectable from", "{:.3f}"),
    Column("verdict", "verdict"),
    Column("values", "by seed"),
)


def between_table(groups: Sequence[Group], found: Rows) -> Table:
    """The perplexity of each TopK point over that of the first TopK point with the same seed; the ratio is the
    geometric mean over the seeds that both have finished."""
    points = [one for one in groups if not one.is_dense]
    rows = []
    for key in found.views:
        for one in points[1:]:
            values = _paired(one, points[0], key)
            if not values:
                continue
            spread = RatioSpread(values)
            low, high = spread.interval or (None, None)
            mean = math.exp(statistics.fmean(map(math.log, values)))
            verdict = "inconclusive" if not spread.differs else "higher" if mean > 1 else "lower"
            rows.append({
                "model": one.label, "first": points[0].label, "view": key.removeprefix(PERPLEXITY),
                "seeds": len(values), "ratio": mean, "low": low, "high": high, "detectable": spread.detectable,
                "verdict": verdict, "values": ", ".join(f"{value:.3f}" for value in values),
            })  # fmt: skip
    note = (
        "Validation perplexity of each point over the first one's, each seed against the same seed; geometric mean and "
        "95 % interval over seeds. Inconclusive: the interval holds 1, or the ratio is below what is detectable."
    )
    return Table("Against the first point", note, COLUMNS, rows)


def _paired(one: Group, first: Group, key: str) -> tuple[float, ...]:
    base = {row.run.seed: row.values[key] for row in first.rows if key in row.values}
    return tuple(row.values[key] / base[row.run.seed] for row in one.rows if key in row.values and row.run.seed in base)
