"""Labels of every neuron of a bundle from the tokens and words that it responds to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

import topklm
from topklm.bundles import Bundle
from topklm.bundles.labels import Label
from topklm.errors import ConfigError, Problem
from topklm.interp.labels.classes import Tested, nearest_classes, shuffled_shares, top_words
from topklm.interp.labels.config import WordsConfig
from topklm.interp.labels.corpus import open_corpus
from topklm.interp.labels.wordnet import CLASSES, Lexicon
from topklm.interp.labels.words import Words, continues_a_word, find_words
from topklm.report.neurons.tokens import top_tokens

Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class WordLabels:
    """The classes of one bundle's M neurons, layer by layer."""

    words: Words
    """The universe."""
    layer: np.ndarray
    """int64 [M]"""
    neuron: np.ndarray
    """int64 [M]"""
    silent: np.ndarray
    """bool [M]"""
    top: np.ndarray
    """int64 [M, n]: top words, -1 where there are no more."""
    tested: Tested
    """By the null that was asked for."""
    other: Tested
    """By the other null."""
    shuffled: np.ndarray
    """float64 [shuffles]: share of the tested neurons with a significant class when classes are shuffled."""


def class_labels(config: WordsConfig, bundle: Bundle, lexicon: Lexicon, advance: Advance | None = None) -> WordLabels:
    """Test all neurons of a bundle. Raises `ConfigError` if its tokens or its data are not known, or no word is."""
    pieces = pieces_of(bundle)
    whole = open_corpus(bundle, config.data).whole_share(continues_a_word(pieces)) if config.whole_words else None
    words = find_words(pieces, bundle.counts, lexicon, config.min_count, whole)
    if not words.entries:
        told = f"no word of WordNet occurred {config.min_count} times in {bundle.path}; collect more tokens"
        raise ConfigError([Problem("min_count", told)])
    tops, silent = [], []
    for layer in bundle.layers:
        tops.append(top_words(words.means(bundle, layer), config.top_words))
        silent.append(bundle.layer(layer).stats.fired == 0)
        if advance is not None:
            advance(bundle.meta.model.dim)
    top, width = np.concatenate(tops), bundle.meta.model.dim
    tested, other = (
        nearest_classes(top, words.classes, null)
        for null in (config.chance, "words" if config.chance == "part_of_speech" else "part_of_speech")
    )
    return WordLabels(
        words=words, layer=np.repeat(bundle.layers, width), neuron=np.tile(np.arange(width), len(bundle.layers)),
        silent=np.concatenate(silent), top=top, tested=tested, other=other,
        shuffled=shuffled_shares(
            top, words.classes, words.counts, config.fdr, config.shuffles, config.seed, config.chance
        ),
    )  # fmt: skip


def pieces_of(bundle: Bundle) -> list[str]:
    """Text of each token type. Raises `ConfigError` where the bundle does not have it."""
    if bundle.tokens is None:
        told = f"{bundle.path} does not know its tokens as text; collect it from a checkpoint with a tokenizer"
        raise ConfigError([Problem("bundle", told)])
    return bundle.tokens


def class_lines(config: WordsConfig, bundle: Bundle, lexicon: Lexicon, found: WordLabels) -> list[Label]:
    """A line for each neuron that was tested, significant or not, with its nearest class."""
    settings = {
        "wordnet": lexicon.sha256, "exceptions": lexicon.has_exceptions, "whole_words": config.whole_words,
        "min_count": config.min_count, "top_words": config.top_words, "chance": config.chance, "fdr": config.fdr,
        "universe": found.words.coverage.kept, "classes": found.tested.n_classes,
    }  # fmt: skip
    tested, lines = found.tested, []
    for i in np.flatnonzero(tested.number >= 0).tolist():
        number = int(tested.number[i])
        members = [found.words.entries[w] for w in found.top[i] if w >= 0]
        shown = [entry.lemma.replace("_", " ") for entry in members if entry.number == number]
        lines.append(
            make_label(
                bundle, int(found.layer[i]), int(found.neuron[i]), "wordnet", CLASSES[number],
                settings | {"words": shown}, score=float(tested.lift[i]), p=float(tested.p[i]), q=float(tested.q[i]),
                significant=bool(tested.q[i] <= config.fdr),
            )
        )  # fmt: skip
    return lines


def token_lines(bundle: Bundle, n: int, min_count: int) -> list[Label]:
    """A line for each neuron that responds to any token: its `n` top tokens, as visible text."""
    settings = {"top_tokens": n, "min_count": min_count}
    every = [(layer, neuron) for layer in bundle.layers for neuron in range(bundle.meta.model.dim)]
    found = top_tokens(bundle, every, n, min_count)
    return [make_label(bundle, *name, "tokens", " ".join(found[name]), settings) for name in every if found[name]]


def make_label(
    bundle: Bundle, layer: int, neuron: int, source: str, label: str, settings: dict, *, score: float | None = None,
    p: float | None = None, q: float | None = None, significant: bool | None = None,
) -> Label:  # fmt: skip
    """A line of today."""
    return Label(
        bundle=bundle.sha256, layer=layer, neuron=neuron, source=source, label=label, score=score, p=p, q=q,
        significant=significant, date=datetime.now(UTC).isoformat(timespec="seconds"), version=topklm.__version__,
        settings=settings,
    )  # fmt: skip
