"""What consistencies show, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from topklm.report.consistency.tables import Row


def statements(rows: Sequence[Row], what: str, threshold: float) -> list[str]:
    """What the rows show, a sentence each, with what speaks against it."""
    found = []
    for label in dict.fromkeys(row["label"] for row in rows if not row["is_initial"]):
        found += _of_series([row for row in rows if row["label"] == label], what, threshold)
    found += _between(rows, threshold)
    found.append(_caveat(rows))
    return found


def _of_series(rows: Sequence[Row], what: str, threshold: float) -> list[str]:
    first, full = rows[0], not math.isnan(rows[0]["signed"])
    where = "" if first["layer"] is None else f" over {_many(len(rows), 'layer')}"
    figure = "PW-MCC" if full else "mean cosine with the nearest neighbour"
    partner = "matched" if full else "mutual nearest neighbours"
    told = (
        f"{first['label']}: the {figure} of {what} is {_against(rows, 'signed' if full else 'upper', '.3f')}{where} "
        f"({_many(first['pairs'], 'pair')} of {_many(first['runs'], 'run')}); {partner} above {threshold:g} are "
        f"{_against(rows, 'above' if full else 'mutual_above', '.1%')} of the neurons."
    )
    found = [told]
    if ceiling := _range(rows, "ceiling"):
        found.append(
            f"{first['label']}: with its own profiles on other text of this size one run would have a mean cosine of "
            f"{ceiling}, by two halves of its tokens: what is missing to 1 is noise of the measurement."
        )
    if "shared" in first:
        found.append(
            f"{first['label']}: {_range(rows, 'shared', '.1%')} (permuted: {_range(rows, 'shared_permuted', '.1%')}) "
            f"are shared: matched above {threshold:g} in both dictionaries, to the same partner "
            f"({_range(rows, 'agree', '.1%')} have the same partner at all, permuted: "
            f"{_range(rows, 'agree_permuted', '.1%')})."
        )
    if any(row["identity_share"] == row["identity_share"] for row in rows):
        began = ", which began from the same weights" if first["same_initial"] else ""
        found.append(
            f"{first['label']}: {_range(rows, 'identity_share', '.1%')} of the neurons are matched to their own index "
            f"in the other run{began} (chance {_range(rows, 'identity_chance', '.1%')})."
        )
    correlation = _range(rows, "rank_correlation", ".2f")
    if correlation:
        found.append(
            f"{first['label']}: the rank correlation of a neuron's density with its matched cosine is {correlation}, "
            f"under the permuted null {_range(rows, 'rank_correlation_permuted', '.2f')}."
        )
    return found


def _against(rows: Sequence[Row], rate: str, form: str) -> str:
    """A rate and its floors."""
    names = {"permuted": "permuted", "random": "random directions", "initial": "random initialisations"}
    floors = {name: _range(rows, f"{rate}_{key}", form) for key, name in names.items()}
    return f"{_range(rows, rate, form)} ({', '.join(f'{name}: {floor}' for name, floor in floors.items() if floor)})"


def _between(rows: Sequence[Row], threshold: float) -> list[str]:
    """Each series with other seeds against the first by layer, TopK readings of the first and dense ones apart."""
    main = [row for row in rows if not row["is_initial"] and not row["same_initial"]]
    labels = list(dict.fromkeys(row["label"] for row in main))
    found = []
    for other in labels[1:]:
        against = {row["layer"]: row for row in main if row["label"] == other}
        pairs = [(row, against[row["layer"]]) for row in main if row["label"] == labels[0] and row["layer"] in against]
        for kind in dict.fromkeys(a["kind"] for a, _ in pairs):
            found.append(_comparison([pair for pair in pairs if pair[0]["kind"] == kind], kind, threshold))
    return found


def _comparison(pairs: Sequence[tuple[Row, Row]], kind: str, threshold: float) -> str:
    full = not math.isnan(pairs[0][0]["signed"])
    rates = {"PW-MCC": "signed", f"the share matched above {threshold:g}": "above"}
    if not full:
        rates = {
            "the cosine with the nearest": "upper",
            f"the share of mutual ones above {threshold:g}": "mutual_above",
        }
    told = []
    for name, rate in rates.items():
        higher = sum(a[f"{rate}_least"] > b[f"{rate}_most"] for a, b in pairs)
        lower = sum(a[f"{rate}_most"] < b[f"{rate}_least"] for a, b in pairs)
        excess = []
        for side in zip(*pairs, strict=True):
            values = [row[rate] - row[f"{rate}_permuted"] for row in side]
            excess.append(_span(values, "+.3f"))
        told.append(
            f"by {name} every pair of its runs is above every pair of the other in {higher}, below in {lower} (above "
            f"the permuted null: {excess[0]} and {excess[1]})"
        )
    layers = _many(len(pairs), {"topk": "TopK layer", "dense": "dense layer"}.get(kind, "dictionary"))
    first, second = (row["label"] for row in pairs[0])
    return f"{first} against {second}, {layers} of the former: {'; '.join(told)}."


def _caveat(rows: Sequence[Row]) -> str:
    silent = _range([row for row in rows if not row["is_initial"]], "silent", ".1f")
    return (
        "Pairs share runs and are not independent, so intervals leave out runs. Silent neurons are left out"
        f"{f' ({silent} a layer)' if silent else ''}. The matching searches for the best partner: no figure here means "
        "anything without the floors beside it."
    )


def _range(rows: Sequence[Row], key: str, form: str = ".3f") -> str:
    """The smallest and the largest value of the rows; empty if there is none."""
    values = [row[key] for row in rows if not math.isnan(row[key])]
    if not values:
        return ""
    return _span(values, form)


def _span(values: Sequence[float], form: str) -> str:
    low, high = (format(each, form) for each in (min(values), max(values)))
    return low if low == high else f"{low} ... {high}"


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
