"""Tables of consistency: matchings, nearest neighbours, own indices, density."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from topklm.report.table import Column, Table, grid

Row = Mapping[str, Any]
"""Means of one series of runs in one layer by name: `rows_of` of `topklm.interp.consistency.summary`."""

LAYER_COLUMNS = (
    Column("label", "runs"),
    Column("layer", "layer"),
    Column("kind", "reading"),
    Column("runs", "n runs"),
    Column("pairs", "n pairs"),
    Column("neurons", "neurons", "{:,.1f}"),
    Column("silent", "silent", "{:,.1f}"),
    Column("signed", "PW-MCC", "{:.3f}"),
    Column("signed_least", "least pair", "{:.3f}"),
    Column("signed_most", "most", "{:.3f}"),
    Column("signed_low", "95 % from", "{:.3f}"),
    Column("signed_high", "to", "{:.3f}"),
    Column("signed_permuted", "permuted", "{:.3f}"),
    Column("signed_random", "random", "{:.3f}"),
    Column("signed_initial", "initial weights", "{:.3f}"),
    Column("ceiling", "a run with itself", "{:.3f}"),
    Column("absolute", "absolute", "{:.3f}"),
    Column("absolute_permuted", "permuted", "{:.3f}"),
    Column("absolute_initial", "initial weights", "{:.3f}"),
    Column("above", "above", "{:.1%}"),
    Column("above_permuted", "permuted", "{:.1%}"),
    Column("above_initial", "initial weights", "{:.1%}"),
    Column("above_absolute", "above, absolute", "{:.1%}"),
    Column("above_absolute_permuted", "permuted", "{:.1%}"),
    Column("above_absolute_initial", "initial weights", "{:.1%}"),
)
NEAREST_COLUMNS = (
    Column("label", "runs"),
    Column("layer", "layer"),
    Column("mutual", "mutual", "{:.1%}"),
    Column("mutual_permuted", "permuted", "{:.1%}"),
    Column("mutual_initial", "initial weights", "{:.1%}"),
    Column("mutual_cosine", "their cosine", "{:.3f}"),
    Column("mutual_cosine_permuted", "permuted", "{:.3f}"),
    Column("mutual_above", "mutual and above", "{:.1%}"),
    Column("mutual_above_permuted", "permuted", "{:.1%}"),
    Column("upper", "bound of PW-MCC", "{:.3f}"),
)
INDEX_COLUMNS = (
    Column("label", "runs"),
    Column("layer", "layer"),
    Column("identity_share", "matched to own index", "{:.2%}"),
    Column("identity_chance", "chance", "{:.2%}"),
    Column("identity_cosine", "cosine with own index", "{:.3f}"),
    Column("identity_partner_cosine", "random partner of its density", "{:.3f}"),
    Column("rank_correlation", "cosine and density", "{:.2f}"),
    Column("rank_correlation_permuted", "permuted", "{:.2f}"),
)
SHARED_COLUMNS = (
    Column("shared", "shared in both dictionaries", "{:.1%}"),
    Column("shared_permuted", "permuted", "{:.1%}"),
    Column("agree", "same partner in both", "{:.1%}"),
    Column("agree_permuted", "permuted", "{:.1%}"),
)
STRATA_COLUMNS = (
    Column("label", "runs"),
    Column("kind", "reading"),
    Column("density_low", "density from", "{:.3g}"),
    Column("density_high", "to", "{:.3g}"),
    Column("neurons", "neurons counted", "{:,}"),
    Column("cosine", "matched cosine", "{:.3f}"),
    Column("permuted", "permuted", "{:.3f}"),
    Column("above", "above", "{:.1%}"),
)


def consistency_tables(rows: Sequence[Row], strata: Sequence[Row], what: str, threshold: float) -> dict[str, Table]:
    """By file name. `what`: the dictionaries in words."""
    shared = SHARED_COLUMNS if any("shared" in row for row in rows) else ()
    tables = {
        "layers": Table(
            f"Best one-to-one matchings of {what}",
            f"Means over pairs of runs; “above”: share matched above {threshold:g}. Intervals leave out runs, not "
            "pairs, which are not independent; there is none for two runs. permuted, random, initial weights: the same "
            "of nulls; a run with itself: on other text of this size (docs/consistency.md).",
            LAYER_COLUMNS, [dict(row) for row in rows],
        ),
        "nearest": Table(
            "Mutual nearest neighbours",
            "Shares of the smaller dictionary. Random directions have many mutual pairs, of low cosine: look at those "
            f"above {threshold:g}. The cosine is of mutual pairs alone and no estimate of PW-MCC; the mean with the "
            "nearest, mutual or not, bounds it from above.",
            NEAREST_COLUMNS, [dict(row) for row in rows],
        ),
        "index": Table(
            "Own index and density",
            "Within one run neuron i is coordinate i in every layer, and no matching is needed; between seeds the "
            "index should say nothing. Cosine and density: Spearman's rank correlation over matched neurons.",
            (*INDEX_COLUMNS, *shared), [dict(row) for row in rows],
        ),
    }  # fmt: skip
    if strata:
        note = "All layers of one reading together; a neuron is counted in each pair that it is matched in."
        tables["density"] = Table("Matched cosine by density", note, STRATA_COLUMNS, [dict(row) for row in strata])
    return tables


def terminal_table(rows: Sequence[Row], what: str) -> Any:
    """The most important columns for a terminal."""
    full = not all(math.isnan(row["signed"]) for row in rows)
    rate = "signed" if full else "upper"
    columns = [
        Column("label", "runs"),
        Column("layer", "layer"),
        Column("pairs", "pairs"),
        Column(rate, "PW-MCC" if full else "nearest", "{:.3f}"),
        Column(f"{rate}_permuted", "permuted", "{:.3f}"),
        Column(f"{rate}_initial", "initial", "{:.3f}"),
        Column("above" if full else "mutual_above", "above", "{:.1%}"),
        Column("identity_share", "own index", "{:.1%}"),
    ]
    return grid(Table(f"Consistency: {what}", "", columns, [dict(row) for row in rows]))
