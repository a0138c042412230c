"""Both entropies of every neuron of a bundle, and what must stand beside them. Needs the bundle alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from topklm.bundles import Bundle
from topklm.interp.entropy.coherence import Null, coherence, false_discovery
from topklm.interp.entropy.config import EntropySettings
from topklm.interp.entropy.layer_means import LayerMeans
from topklm.interp.entropy.response import Response, responses, shared_threshold, thresholds
from topklm.interp.entropy.semantic_entropy import similarity_entropy, unit, without
from topklm.interp.entropy.token_entropy import token_explained, token_figures

Columns = dict[str, np.ndarray]
Advance = Callable[[int], None]

SIZE_STEP = 1.25
"""Neurons whose sets differ in size by less than this factor share the random sets of the semantic entropy."""


def measure(
    bundle: Bundle, settings: EntropySettings, embedding: np.ndarray, advance: Advance | None = None
) -> dict[int, Columns]:
    """Per layer, the figures of its N neurons by name, [N] each (docs/entropy.md lists them).

    embedding [V, D]: whose similarities the semantic entropy is of; with leave_one_out the model's own, D = N.
    `advance` is told how many more neurons are done.
    """
    shared = _shared_tau(bundle, settings) if settings.scope == "all" else None
    kept = np.flatnonzero(bundle.counts >= max(1, settings.min_count))
    semantic = _Semantic(kept, bundle.counts[kept], embedding[kept], settings)
    found = {}
    for layer in bundle.layers:
        columns = _token_columns(bundle, layer, settings)
        columns |= _semantic_columns(bundle, layer, settings, semantic, shared, advance)
        found[layer] = columns
    together = false_discovery(np.concatenate([columns["coherence_p"] for columns in found.values()]))
    ends = np.cumsum([len(columns["coherence_p"]) for columns in found.values()])
    for columns, q in zip(found.values(), np.split(together, ends[:-1]), strict=True):
        columns["coherence_q"] = q
    return found


def _token_columns(bundle: Bundle, layer: int, settings: EntropySettings) -> Columns:
    table = "positive" if settings.negative == "relu_first" else "sum"
    blocks = LayerMeans([bundle], layer, table).blocks()
    figures = token_figures(blocks, bundle.meta.model.dim, negative=settings.negative, min_count=settings.min_count)
    stats = bundle.layer(layer).stats
    eta, epsilon = token_explained(LayerMeans([bundle], layer).blocks(), stats.sum, stats.square_sum)
    return {
        "token_entropy": figures.entropy,
        "effective_tokens": figures.effective,
        "token_entropy_normalised": figures.normalised,
        "mass_entropy": figures.mass_entropy,
        "negative_mass": figures.negative_mass,
        "active_types": figures.types,
        "token_explained": eta,
        "token_explained_corrected": epsilon,
    }


def _semantic_columns(
    bundle: Bundle,
    layer: int,
    settings: EntropySettings,
    semantic: _Semantic,
    shared: float | None,
    advance: Advance | None,
) -> Columns:
    means = LayerMeans([bundle], layer, "sum", settings.min_count)
    tau = shared
    if settings.scope == "layer":
        tau = shared_threshold(
            lambda: (block for _, block in means.columns()), settings.percentile, settings.share, settings.over
        )
    names = ("semantic_entropy", "semantic_entropy_random", "coherence", "coherence_p", "effective_pairs")
    columns = {name: np.full(means.width, np.nan) for name in names}
    columns |= {name: np.zeros(means.width, np.int64) for name in ("response_tokens", "response_tokens_used")}
    for start, block in means.columns():
        own = thresholds(block, settings.percentile, settings.share, settings.over) if tau is None else tau
        for offset, response in enumerate(responses(block, own, settings.cap)):
            neuron = start + offset
            columns["response_tokens"][neuron] = response.n
            columns["response_tokens_used"][neuron] = len(response.tokens)
            for name, value in semantic.figures(response, neuron).items():
                columns[name][neuron] = value
        if advance is not None:
            advance(block.shape[1])
    return columns


class _Semantic:
    """The figures of single sets of tokens, with the random sets that neurons share."""

    def __init__(self, types: np.ndarray, counts: np.ndarray, embedding: np.ndarray, settings: EntropySettings) -> None:
        self.types, self.counts, self.settings = types, counts, settings
        self.embedding = np.asarray(embedding, np.float64)
        self.unit = unit(self.embedding)
        self.null = Null(self.unit, counts, draws=max(1, settings.draws), seed=settings.seed)
        self._random: dict[tuple[int, int], float] = {}

    def figures(self, response: Response, neuron: int) -> dict[str, float]:
        """Of the set of one neuron; nothing for fewer than two tokens."""
        tokens, settings = response.tokens, self.settings
        if len(tokens) < 2:
            return {}
        rows = unit(without(self.embedding[tokens], neuron)) if settings.leave_one_out else self.unit[tokens]
        counts = self.counts[tokens]
        found = coherence(rows, counts)
        figures = {
            "semantic_entropy": similarity_entropy(rows, counts, settings.bins, settings.bin_range),
            "coherence": found.value,
            "effective_pairs": found.effective_pairs,
        }
        if settings.draws:
            figures["coherence_p"] = self.null.p_value(found.value, tokens)
        if settings.null_sets:
            figures["semantic_entropy_random"] = self._random_entropy(tokens)
        return figures

    def _random_entropy(self, tokens: np.ndarray) -> float:
        """Mean semantic entropy of random sets of this size and frequency, from the first set of its kind that came.

        Its frequencies are by bin those of that set; the size and the mean frequency bin decide the kind.
        """
        size = round(float(np.log(len(tokens)) / np.log(SIZE_STEP)))
        kind = (size, round(float(self.null.bin[tokens].mean())))
        if kind not in self._random:
            rng = np.random.default_rng((self.settings.seed, *kind))
            profile = self.null.profile(tokens)
            drawn = [self.null.draw(profile, rng) for _ in range(self.settings.null_sets)]
            settings = self.settings
            values = [
                similarity_entropy(self.unit[s], self.counts[s], settings.bins, settings.bin_range) for s in drawn
            ]
            self._random[kind] = float(np.mean(values))
        return self._random[kind]


def _shared_tau(bundle: Bundle, settings: EntropySettings) -> float:
    def blocks() -> Iterator[np.ndarray]:
        for layer in bundle.layers:
            for _, block in LayerMeans([bundle], layer, "sum", settings.min_count).columns():
                yield block

    return shared_threshold(blocks, settings.percentile, settings.share, settings.over)


def convergence(bundle: Bundle, settings: EntropySettings) -> list[dict[str, Any]]:
    """Token entropy at the corpus sizes that the bundle has apart: one row per (layer, size), ascending.

    At every size over the types that count at the full one, with whatever occurrences they have there, so that the
    rows differ in how well the means are known and in nothing else. Each row: the mean over the neurons that have an
    entropy at every size; the last also `split_half_error`, the mean absolute difference between the entropies of a
    neuron in the two halves, and `limit`, the mean extrapolated (`extrapolated`). Empty for a bundle without parts.
    """
    levels = bundle.snapshots()
    counted = bundle.counts >= max(1, settings.min_count)
    rows: list[dict[str, Any]] = []
    for layer in bundle.layers if levels else []:
        entropies = np.stack([_entropy_over(parts, layer, settings, counted) for parts in levels])  # [levels, N]
        known = ~np.isnan(entropies).any(axis=0)
        means = [float(each[known].mean()) if known.any() else float("nan") for each in entropies]
        for parts, mean in zip(levels, means, strict=True):
            row: dict[str, Any] = {"layer": layer, "tokens": sum(part.n_tokens for part in parts)}
            row |= {"types": int(counted.sum()), "neurons": int(known.sum()), "token_entropy": mean}
            rows.append(row | {"split_half_error": float("nan"), "limit": float("nan")})
        rows[-1]["limit"] = extrapolated(means)
        halves = [_entropy_over(half, layer, settings, counted) for name in "ab" if (half := bundle.half(name))]
        if len(halves) == 2:
            differences = np.abs(halves[0] - halves[1])
            differences = differences[~np.isnan(differences)]
            rows[-1]["split_half_error"] = float(differences.mean()) if len(differences) else float("nan")
    return rows


def extrapolated(values: Sequence[float]) -> float:
    """The limit of a sequence whose differences shrink by a constant factor r, from its last three values E1, E2, E3:
    E3 + (E3 - E2) r / (1 - r) (Aitken). For sizes that grow by a constant factor. NaN with fewer values, and unless
    0 < r <= 2/3: where the last step is nearly as large as the one before, the end is not in sight."""
    if len(values) < 3:
        return float("nan")
    first, second = values[-2] - values[-3], values[-1] - values[-2]
    ratio = second / first if first else float("nan")
    return values[-1] + second * ratio / (1 - ratio) if 0 < ratio <= 2 / 3 else float("nan")


def _entropy_over(parts: Sequence[Bundle], layer: int, settings: EntropySettings, counted: np.ndarray) -> np.ndarray:
    """Token entropy [N] of a layer in parts together, over given types [V]."""
    means = LayerMeans(parts, layer, "positive" if settings.negative == "relu_first" else "sum")
    return token_figures(means.blocks(counted), means.width, negative=settings.negative, min_count=1).entropy
