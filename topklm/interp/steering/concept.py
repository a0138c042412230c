"""What a neuron stands for, as sets of token types: those it responds to, and those whose logits it raises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topklm.bundles import Bundle
from topklm.interp.entropy.layer_means import LayerMeans
from topklm.interp.entropy.response import responses, thresholds
from topklm.interp.neurons import Neuron
from topklm.model import Transformer


@dataclass(frozen=True, kw_only=True)
class ConceptSettings:
    """Which token types a neuron responds to: those whose mean activation exceeds share * P_q of its positive means,
    the set S of the semantic entropy (docs/entropy.md, preset recommended)."""

    min_count: int = 20
    """Types that occurred less often are left out."""
    percentile: float = 99.0
    """q."""
    share: float = 0.7
    """The paper's 0.7."""
    cap: int = 100
    """At most so many, those with the largest means."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A set of token types of one neuron: its top tokens, or those that it writes."""

    tokens: np.ndarray
    """int64 [m]: token types by falling mean activation, or by falling effect; special tokens are not among them."""
    n: int
    """Their number before the cap, m = min(n, cap)."""
    corpus_rate: float
    """Their share of the bundle's tokens: how often they come by themselves."""

    def hits(self, ids: Sequence[int]) -> int:
        """How many of `ids` are in the set."""
        return int(np.isin(np.asarray(ids, np.int64), self.tokens).sum())


def concepts_of(
    bundle: Bundle, neurons: Sequence[Neuron], settings: ConceptSettings, special: Sequence[int] = ()
) -> dict[Neuron, Concept]:
    """The sets of some neurons from a bundle's mean activations per token type; empty where no mean is positive.

    `special`: types such as BOS and EOS that are no part of a concept.
    """
    found = {}
    for layer in sorted({neuron.layer for neuron in neurons}):
        table = LayerMeans([bundle], layer, min_count=settings.min_count)
        usable = ~np.isin(table.types, special)
        types = table.types[usable]
        indices = {neuron.index: neuron for neuron in neurons if neuron.layer == layer}
        for first, means in table.columns():
            here = [i for i in indices if first <= i < first + means.shape[1]]
            chosen = means[usable][:, [i - first for i in here]]
            if not chosen.size:
                continue
            tau = thresholds(chosen, settings.percentile, settings.share, "positive")
            for i, response in zip(here, responses(chosen, tau, settings.cap), strict=True):
                tokens = types[response.tokens]
                rate = float(bundle.counts[tokens].sum() / bundle.n_tokens)
                found[indices[i]] = Concept(tokens=tokens, n=response.n, corpus_rate=rate)
    return found


def written_by(
    model: Transformer,
    bundle: Bundle,
    neurons: Sequence[Neuron],
    n: int,
    *,
    min_count: int = 1,
    special: Sequence[int] = (),
) -> dict[Neuron, Concept]:
    """The `n` token types whose logits each neuron raises most directly: the largest of W_U[v, i] g_i, W_U the
    unembedding and g the weight of the final norm, if its value lives on in coordinate i of the stream to the end.

    Types that occur less often than `min_count` in the bundle are left out: a model hardly ever writes them.
    """
    weight, gain = (w.detach().double().cpu().numpy() for w in (model.head_weight, model.norm.weight))
    usable = np.setdiff1d(np.flatnonzero(bundle.counts >= min_count), special)
    found = {}
    for neuron in neurons:
        effect = weight[usable, neuron.index] * gain[neuron.index]
        tokens = usable[np.argsort(-effect, kind="stable")[:n]]
        rate = float(bundle.counts[tokens].sum() / bundle.n_tokens)
        found[neuron] = Concept(tokens=tokens, n=len(tokens), corpus_rate=rate)
    return found
