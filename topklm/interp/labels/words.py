"""From token types to English words: which pieces are words, and how a neuron responds to each word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topklm.bundles import Bundle
from topklm.interp.labels.wordnet import FUNCTION_WORDS, Entry, Lexicon

LEAST_LETTERS = 3
"""Shorter pieces are function words, abbreviations and beginnings of words."""
LEAST_WHOLE = 0.5
"""A piece counts as a word if nothing continues it in at least this share of its occurrences."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of a corpus is words with a class. Types that occurred, and the share of all tokens that they are."""

    types: int
    """Token types that occurred."""
    pieces: int
    """Of them, those that begin a word and have at least `LEAST_LETTERS` letters and nothing else."""
    parts: int
    """Of those, beginnings of longer words by `LEAST_WHOLE`: left out."""
    function: int
    """Of the rest, function words: left out."""
    unknown: int
    """Of the rest, not in WordNet: left out."""
    mapped: int
    """The rest: types that are words with a class."""
    words: int
    """Lemmas that they are."""
    kept: int
    """Of them, those that occurred at least `min_count` times: the universe."""
    tokens: float
    """Share of all tokens that are of these."""

    def sentence(self) -> str:
        """In words."""
        return (
            f"{self.types:,} token types occurred; {self.pieces:,} begin a word of at least {LEAST_LETTERS} letters, "
            f"of which {self.parts:,} mostly go on, {self.function:,} are function words and {self.unknown:,} are not "
            f"in WordNet. The other {self.mapped:,} types are {self.words:,} words; the {self.kept:,} frequent enough "
            f"make up {self.tokens:.0%} of the tokens."
        )


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of a corpus that have a class. A word is a lemma with its class; all its forms are one."""

    entries: list[Entry]
    """[W]"""
    counts: np.ndarray
    """int64 [W]: occurrences of all its forms."""
    of_type: np.ndarray
    """int64 [V]: the word of each token type; -1: none."""
    coverage: Coverage

    @property
    def classes(self) -> np.ndarray:
        """int64 [W]: number of each word's class."""
        return np.array([entry.number for entry in self.entries], np.int64)

    def means(self, bundle: Bundle, layer: int) -> np.ndarray:
        """float64 [W, N]: mean activation of each neuron over the occurrences of each word."""
        sums = np.zeros((len(self.entries), bundle.meta.model.dim))
        for types, rows in bundle.layer(layer).table_blocks("sum"):
            word = self.of_type[types]
            np.add.at(sums, word[word >= 0], rows[word >= 0])
        return sums / self.counts[:, None]


def continues_a_word(pieces: Sequence[str]) -> np.ndarray:
    """bool [V]: which pieces go on with the word before them: they begin with a letter, not with a space."""
    return np.array([piece[:1].isalpha() for piece in pieces], bool)


def find_words(
    pieces: Sequence[str], counts: np.ndarray, lexicon: Lexicon, min_count: int, whole_share: np.ndarray | None = None
) -> Words:
    """The words among token types.

    pieces [V]: text of each type, a leading space marks the beginning of a word; counts [V]; whole_share [V]: in what
    share of its occurrences a piece is a whole word (`BundleCorpus.whole_share`), None: taken to be always.
    """
    seen = [v for v in np.flatnonzero(counts).tolist() if v < len(pieces)]
    begin = [v for v in seen if _begins_a_word(pieces[v])]
    whole = begin if whole_share is None else [v for v in begin if not whole_share[v] < LEAST_WHOLE]
    content = [v for v in whole if pieces[v][1:].lower() not in FUNCTION_WORDS]
    found = {v: entry for v in content if (entry := lexicon.lookup(pieces[v][1:])) is not None}
    total: dict[Entry, int] = {}
    for v, entry in found.items():
        total[entry] = total.get(entry, 0) + int(counts[v])
    entries = sorted((e for e, n in total.items() if n >= max(1, min_count)), key=lambda e: (e.lemma, e.number))
    number = {entry: i for i, entry in enumerate(entries)}
    of_type = np.full(len(counts), -1, np.int64)
    for v, entry in found.items():
        of_type[v] = number.get(entry, -1)
    kept = np.array([total[entry] for entry in entries], np.int64)
    coverage = Coverage(
        types=len(seen), pieces=len(begin), parts=len(begin) - len(whole), function=len(whole) - len(content),
        unknown=len(content) - len(found), mapped=len(found), words=len(total), kept=len(entries),
        tokens=float(kept.sum() / max(1, counts.sum())),
    )  # fmt: skip
    return Words(entries=entries, counts=kept, of_type=of_type, coverage=coverage)


def _begins_a_word(piece: str) -> bool:
    return piece[:1] == " " and len(piece) > LEAST_LETTERS and piece[1:].isalpha()
