"""One pair of runs: how alike their dictionaries are, and how alike they would be by chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from topklm.interp.consistency.dictionary import Dictionary
from topklm.interp.consistency.match import Matching, cosine_blocks, cosines, hungarian, nearest
from topklm.interp.consistency.null import random_dictionary, random_partner, relabelled

NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How alike two dictionaries of m and n entries are. All shares are of min(m, n). NaN: not computed."""

    signed: float
    """MCC: mean cosine of the one-to-one matching with the largest one."""
    absolute: float
    """The same of absolute cosines, with a matching of its own."""
    above: float
    """Share matched above the threshold in the signed matching."""
    above_absolute: float
    """Share matched above it in the absolute one."""
    mutual: float
    """Share that has a mutual nearest neighbour."""
    mutual_cosine: float
    """Mean cosine of these pairs. Pairs that fit badly are not among them: no estimate of the MCC."""
    mutual_above: float
    """Share that has one above the threshold."""
    upper: float
    """Bound of `signed` from above: mean cosine with the nearest neighbour, shared or not."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The same index in both runs. Only within a run does it have to mean the same neuron."""

    share: float
    """Share of the neurons in both dictionaries whose partner in the matching is their own index."""
    chance: float
    """The same in a random matching."""
    cosine: float
    """Mean cosine of own index with own index."""
    partner_cosine: float
    """Mean cosine with a random partner of the same density (a power of two)."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All about one pair of runs in one layer."""

    found: Rates
    identity: Identity
    permuted: list[Rates]
    """Of the second dictionary with relabelled coordinates, a draw each."""
    random: list[Rates]
    """Of random dictionaries of these sizes, a draw each."""
    matching: Matching
    """Signed, of places in the dictionaries: Hungarian, or mutual nearest neighbours where that was not computed."""
    permuted_matchings: list[Matching]
    """The same of each draw of `permuted`."""
    rank_correlation: float
    """Spearman's, of matched cosine and density, each pair once with either neuron's density."""


Floor = Callable[[int, int, int], list[Rates]]


def compare(
    a: Dictionary, b: Dictionary, bins: np.ndarray, *, threshold: float, draws: int, seed: int, full: bool, floor: Floor
) -> Comparison:
    """Compare two dictionaries over the same d coordinates, each with at least one entry.

    `bins` [d]: frequency bins of the coordinates, within which the null permutes. `full`: Hungarian matchings too.
    `floor`: rates of random dictionaries of m and n entries in d dimensions (`random_floor`, which pairs share).
    """
    found, matching = rates(a.rows, b.rows, threshold, full)
    nulls = []
    for draw in range(draws):
        rng = np.random.default_rng((seed, draw))
        nulls.append(rates(a.rows, relabelled(b.rows, bins, rng), threshold, full))
    return Comparison(
        found=found,
        identity=identity(a, b, matching),
        permuted=[each for each, _ in nulls],
        random=floor(len(a.rows), len(b.rows), a.rows.shape[1]),
        matching=matching,
        permuted_matchings=[each for _, each in nulls],
        rank_correlation=rank_correlation(*by_density(a, b, matching)),
    )


def rates(a: np.ndarray, b: np.ndarray, threshold: float, full: bool) -> tuple[Rates, Matching]:
    """The rates of unit rows a [m, d] and b [n, d], and their signed matching. Not `full`: nearest neighbours only, in
    blocks, and their mutual pairs as the matching."""
    m, n = len(a), len(b)
    least = min(m, n)
    if not least:
        none = np.zeros(0, np.int64)
        return Rates(**dict.fromkeys(Rates.__dataclass_fields__, NAN)), Matching(a=none, b=none, cosine=np.zeros(0))
    matrix = cosines(a, b) if full else None
    neighbours = nearest(cosine_blocks(a, b) if matrix is None else [(0, matrix)], m, n)
    mutual = neighbours.mutual()
    signed = absolute = None
    if matrix is not None:
        signed, absolute = hungarian(matrix), hungarian(matrix, absolute=True)
    return Rates(
        signed=_mean(signed),
        absolute=_mean(absolute),
        above=_above(signed, threshold, least),
        above_absolute=_above(absolute, threshold, least),
        mutual=len(mutual.a) / least,
        mutual_cosine=_mean(mutual),
        mutual_above=_above(mutual, threshold, least),
        upper=neighbours.upper,
    ), signed or mutual


def random_floor(threshold: float, draws: int, seed: int, full: bool) -> Floor:
    """The rates of random dictionaries, computed once for each size that is asked for."""
    known: dict[tuple[int, int, int], list[Rates]] = {}

    def floor(m: int, n: int, d: int) -> list[Rates]:
        if (m, n, d) not in known:
            known[m, n, d] = list(_random(m, n, d))
        return known[m, n, d]

    def _random(m: int, n: int, d: int) -> Iterator[Rates]:
        for draw in range(draws):
            rng = np.random.default_rng((seed, draw, 1))
            yield rates(random_dictionary(m, d, rng), random_dictionary(n, d, rng), threshold, full)[0]

    return floor


def identity(a: Dictionary, b: Dictionary, matching: Matching) -> Identity:
    """What the same index has in common in both, of the neurons that are in both."""
    both, in_a, in_b = np.intersect1d(a.index, b.index, return_indices=True)
    if not len(both):
        return Identity(share=NAN, chance=NAN, cosine=NAN, partner_cosine=NAN)
    own = int((a.index[matching.a] == b.index[matching.b]).sum())
    return Identity(
        share=own / len(both),
        chance=len(matching.a) / (len(a.index) * len(b.index)),
        cosine=float(np.einsum("id,id->i", a.rows[in_a], b.rows[in_b], dtype=np.float64).mean()),
        partner_cosine=random_partner(a.rows, b.rows, octave(a.density), octave(b.density)),
    )


def shared(
    first: tuple[Dictionary, Dictionary], second: tuple[Dictionary, Dictionary], threshold: float, full: bool
) -> tuple[float, float]:
    """(share of neurons that are matched above the threshold in two kinds of dictionary and to the same partner, share
    that is matched to the same partner), of the neurons that both kinds have (arXiv 2501.16615).

    `first` and `second`: the pair's dictionaries of either kind. NaN if there is no such neuron.
    """
    kept = [np.intersect1d(one.index, two.index) for one, two in zip(first, second, strict=True)]
    if not all(map(len, kept)):
        return NAN, NAN
    found = []
    for pair in (first, second):
        a, b = (each.only(index) for each, index in zip(pair, kept, strict=True))
        matching = rates(a.rows, b.rows, threshold, full)[1]
        partner = np.full((2, len(kept[0])), NAN)
        partner[:, matching.a] = matching.b, matching.cosine
        found.append(partner)
    agree = found[0][0] == found[1][0]
    above = agree & (found[0][1] > threshold) & (found[1][1] > threshold)
    least = min(map(len, kept))
    return float(above.sum() / least), float(agree.sum() / least)


def shared_by_chance(
    first: tuple[Dictionary, Dictionary], second: tuple[Dictionary, Dictionary], bins: np.ndarray, *, threshold: float,
    draws: int, seed: int, full: bool,
) -> tuple[float, float]:  # fmt: skip
    """Means of `shared` over draws of the permuted null, in which both dictionaries of the second run are relabelled
    alike: where two kinds of dictionary are alike within a run (as encoders and decoders are), partners agree without
    any likeness of the runs."""
    found = []
    for draw in range(draws):
        b = [
            replace(pair[1], rows=relabelled(pair[1].rows, bins, np.random.default_rng((seed, draw))))
            for pair in (first, second)
        ]
        found.append(shared((first[0], b[0]), (second[0], b[1]), threshold, full))
    above, agree = np.mean(found, axis=0).tolist()
    return above, agree


def octave(density: np.ndarray) -> np.ndarray:
    """int64: b for a density in [2^b, 2^(b+1)); one stratum of its own for those that are not known."""
    return np.floor(np.log2(np.where(density > 0, density, 2.0))).astype(np.int64)


def by_density(a: Dictionary, b: Dictionary, matching: Matching) -> tuple[np.ndarray, np.ndarray]:
    """(densities [2 p], cosines [2 p]) of p pairs: each with the density of either of its neurons."""
    density = np.concatenate([a.density[matching.a], b.density[matching.b]])
    return density, np.tile(matching.cosine, 2)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation; NaN for fewer than two values, equal ones or unknown ones."""
    if len(x) < 2 or np.isnan(x).any() or np.isnan(y).any():
        return NAN
    ranks = []
    for values in (x, y):
        _, place, number = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(number) - (number - 1) / 2)[place])  # equal values share their mean rank
    spread = [each.std() for each in ranks]
    if min(spread) == 0:
        return NAN
    return float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / (spread[0] * spread[1]))


def _mean(matching: Matching | None) -> float:
    return float(matching.cosine.mean()) if matching is not None and len(matching.cosine) else NAN


def _above(matching: Matching | None, threshold: float, least: int) -> float:
    return NAN if matching is None else float((matching.cosine > threshold).sum() / least)
