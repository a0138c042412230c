"""Means over pairs of runs, with intervals that know that pairs share runs, and the floors beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from topklm.interp.consistency.compare import octave, rank_correlation
from topklm.interp.consistency.pairs import Measured
from topklm.interp.consistency.series import Series
from topklm.report.student import t_quantile

NAN = float("nan")
RATES = ("signed", "absolute", "above", "above_absolute", "mutual", "mutual_cosine", "mutual_above", "upper")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over pairs of runs."""

    mean: float
    low: float
    """95 % interval of the mean for runs with other seeds: Student's t of the jackknife over runs, not over pairs. NaN
    with fewer than three runs."""
    high: float
    least: float
    """The smallest pair."""
    most: float


def spread(values: Sequence[float], pairs: Sequence[tuple[int, int]]) -> Spread:
    """Of one value per pair of runs (the mean of a U-statistic of degree two).

    Pairs that share a run are not independent, so not they are left out one by one, but runs: with n runs and theta_i
    the mean of the pairs without run i, SE^2 = (n - 1) / n * sum (theta_i - mean theta)^2 (Arvesen 1969). For three
    runs twice what three independent pairs would give.
    """
    found = np.asarray(values, np.float64)
    mean = float(found.mean())
    runs = sorted({run for pair in pairs for run in pair})
    without = [found[[run not in pair for pair in pairs]] for run in runs]
    half = NAN
    if len(runs) > 2 and all(map(len, without)):
        theta = np.array([each.mean() for each in without])
        n = len(runs)
        half = t_quantile(0.975, n - 1) * math.sqrt((n - 1) / n * float(((theta - theta.mean()) ** 2).sum()))
    return Spread(mean=mean, low=mean - half, high=mean + half, least=float(found.min()), most=float(found.max()))


def rows_of(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row per series and layer with every mean. Of a rate x: x, x_low, x_high, x_least, x_most over the pairs;
    x_permuted and x_random the means of the nulls; x_initial that of the random initialisations of the same
    architecture. `family` numbers the series with other seeds; their initialisations have the same."""
    rows = []
    initial: dict[tuple[str, int | None], dict[str, Any]] = {}
    groups = _grouped(measured)
    for (series, layer), members in groups:
        row = _row(series, layer, members)
        rows.append(row)
        if series.is_initial and not series.same_initial:
            initial[series.architecture, layer] = row
    families = _families([series for (series, _), _ in groups])
    for row, ((series, layer), _) in zip(rows, groups, strict=True):
        row["family"] = families[series.label]
        floor = initial.get((series.architecture, layer), {})
        row |= {f"{rate}_initial": NAN if series.is_initial else floor.get(rate, NAN) for rate in RATES}
    return rows


def strata_of(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row per series, reading and power of two of density: how well its neurons are matched, and under the null.

    All pairs and layers of the reading together; each neuron of a matched pair counts with its own density.
    """
    rows = []
    kinds: dict[tuple[str, str], list[Measured]] = {}
    for each in measured:
        kinds.setdefault((each.series.label, kind_of(each)), []).append(each)
    for (label, kind), members in kinds.items():
        densities, found = _with_densities(members, "")
        null_densities, null = _with_densities(members, "null_")
        known = densities > 0  # a file knows of none
        strata, null_strata = octave(densities[known]), octave(null_densities)
        for stratum in np.unique(strata):
            cosine = found[known][strata == stratum]
            chance = null[null_strata == stratum]
            rows.append(
                {
                    "label": label,
                    "kind": kind,
                    "is_initial": members[0].series.is_initial,
                    "same_initial": members[0].series.same_initial,
                    "density_low": 2.0**stratum,
                    "density_high": 2.0 ** (stratum + 1),
                    "neurons": len(cosine),
                    "cosine": float(cosine.mean()),
                    "permuted": float(chance.mean()) if len(chance) else NAN,
                    "above": float((cosine > members[0].record.numbers["threshold"]).mean()),
                }
            )
    return rows


def clouds_of(measured: Sequence[Measured]) -> dict[tuple[str, int | None], tuple[np.ndarray, np.ndarray]]:
    """Per series and layer all matched cosines of its pairs, and those of the permuted null."""
    return {
        (series.label, layer): (
            np.concatenate([each.record.arrays["cosine"] for each in members]),
            np.concatenate([each.record.arrays["null_cosine"] for each in members]),
        )
        for (series, layer), members in _grouped(measured)
    }


def kind_of(each: Measured) -> str:
    """How the layer was read: topk or dense; empty where the dictionary is of no layer."""
    bundle = each.pair[0].bundle
    return "" if bundle is None or each.layer is None else bundle.layer(each.layer).kind


def _families(series: Sequence[Series]) -> dict[str, int]:
    first: dict[str, int] = {}  # by architecture
    found: dict[str, int] = {}
    for each in sorted(series, key=lambda each: each.is_initial or each.same_initial):
        if each.label not in found:
            own = not (each.is_initial or each.same_initial) or each.architecture not in first
            found[each.label] = len(set(found.values())) if own else first[each.architecture]
            first.setdefault(each.architecture, found[each.label])
    return found


def _grouped(measured: Sequence[Measured]) -> list[tuple[tuple[Series, int | None], list[Measured]]]:
    found: dict[tuple[str, int | None], tuple[Series, list[Measured]]] = {}
    for each in measured:
        found.setdefault((each.series.label, each.layer), (each.series, []))[1].append(each)
    return [((series, layer), members) for (_, layer), (series, members) in found.items()]


def _row(series: Series, layer: int | None, members: Sequence[Measured]) -> dict[str, Any]:
    numbers = [each.record.numbers for each in members]
    row: dict[str, Any] = {
        "label": series.label,
        "layer": layer,
        "kind": kind_of(members[0]),
        "is_initial": series.is_initial,
        "same_initial": series.same_initial,
        "runs": len(series.sources),
        "pairs": len(members),
        "neurons": float(np.mean([min(each["entries"]) for each in numbers])),
        "silent": float(np.mean([each["silent"] for each in numbers])),
        "coordinates": numbers[0]["coordinates"],
    }
    for rate in RATES:
        found = spread([each["found"][rate] for each in numbers], series.pairs)
        row |= {rate: found.mean, f"{rate}_low": found.low, f"{rate}_high": found.high}
        row |= {f"{rate}_least": found.least, f"{rate}_most": found.most}
    for rate in RATES:
        for null in ("permuted", "random"):
            row[f"{rate}_{null}"] = float(np.mean([draw[rate] for each in numbers for draw in each[null]]))
        row[f"{rate}_permuted_most"] = float(np.max([draw[rate] for each in numbers for draw in each["permuted"]]))
    for name in ("share", "chance", "cosine", "partner_cosine"):
        row[f"identity_{name}"] = float(np.mean([each["identity"][name] for each in numbers]))
    ceilings = np.array([each["ceiling"] for each in numbers])
    row["ceiling"] = float(ceilings[~np.isnan(ceilings)].mean()) if not np.isnan(ceilings).all() else NAN
    row["rank_correlation"] = float(np.mean([each["rank_correlation"] for each in numbers]))
    row["rank_correlation_permuted"] = float(np.mean([_null_rank_correlation(each) for each in members]))
    for name in numbers[0]["shared"] or ():
        row[name] = float(np.mean([each["shared"][name] for each in numbers]))
    return row


def _null_rank_correlation(each: Measured) -> float:
    return rank_correlation(*_with_densities([each], "null_"))


def _with_densities(members: Sequence[Measured], what: str) -> tuple[np.ndarray, np.ndarray]:
    """(densities, cosines) of the matched pairs, or with `null_` of the permuted null: each pair with the density of
    either of its neurons."""
    arrays = [each.record.arrays for each in members]
    density = [each[f"{what}density_{side}"] for side in ("a", "b") for each in arrays]
    cosine = [each[f"{what}cosine"] for _ in ("a", "b") for each in arrays]
    return np.concatenate(density), np.concatenate(cosine)
