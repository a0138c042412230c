"""The text behind a bundle's positions: bundles store numbers, the prepared data has the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from topklm.bundles import Bundle
from topklm.checkpoint.load import read_description
from topklm.data import TokenArray, Tokenizer, open_saved_tokenizer, read_manifest
from topklm.errors import CheckpointError, ConfigError, DataError, Problem


class BundleCorpus:
    """The tokens that a bundle was collected over. Positions are the bundle's, which count through its sources."""

    def __init__(self, bundle: Bundle, arrays: Sequence[TokenArray]) -> None:
        """`arrays`: the tokens of each of `bundle.meta.corpus.parts`. `open_corpus` makes it."""
        self.bundle, self._arrays = bundle, list(arrays)
        self.context = bundle.meta.corpus.context
        """Tokens of a window; the model had seen those of the same window up to a position, nothing before."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises `DataError` if it is not stored beside the tokens."""
        return open_saved_tokenizer(self._arrays[0].directory / "tokenizer")

    def window(self, start: int) -> np.ndarray:
        """Tokens int64 [context] of the window that begins at a position."""
        place = self.bundle.locate(start)
        array = self._arrays[self.bundle.meta.corpus.parts.index(place.part)]
        return array.read(place.index, place.index + self.context).astype(np.int64)

    def document_ids(self, start: int) -> np.ndarray:
        """The document of each token of the window that begins at a position, int64 [context]."""
        place = self.bundle.locate(start)
        array = self._arrays[self.bundle.meta.corpus.parts.index(place.part)]
        return array.document_ids(place.index, place.index + self.context)

    def whole_share(self, continues: np.ndarray) -> np.ndarray:
        """float64 [V]: in what share of its occurrences a token is not followed by one that `continues` [V] a word
        (within its window); NaN for tokens that nothing follows."""
        followed, joined = np.zeros(len(continues)), np.zeros(len(continues))
        for start in self.bundle.windows:
            tokens = self.window(int(start))
            followed += np.bincount(tokens[:-1], minlength=len(continues))
            joined += np.bincount(tokens[:-1], weights=continues[tokens[1:]], minlength=len(continues))
        with np.errstate(invalid="ignore"):
            return 1 - joined / followed


def open_corpus(bundle: Bundle, data: str | None) -> BundleCorpus:
    """The corpus of a bundle in the directory `data` of prepared sources; None: where the model's run had it.

    Raises `ConfigError` if that is not known or not there, `DataError` if the tokens are not the bundle's.
    """
    root = Path(data) if data is not None else _trained_on(bundle)
    arrays, problems = [], []
    for part in bundle.meta.corpus.parts:
        try:
            manifest = read_manifest(root / part.source)
            if manifest.fingerprint() != part.fingerprint:
                raise DataError(f"{root / part.source} does not hold the tokens that {bundle.path} was collected over")
            arrays.append(TokenArray(root / part.source, manifest, part.split))
        except DataError as error:
            problems.append(Problem("data", f"{error}; give the prepared data of the bundle, data=DIR"))
    if problems:
        raise ConfigError(problems)
    return BundleCorpus(bundle, arrays)


def _trained_on(bundle: Bundle) -> Path:
    path = bundle.meta.model.path
    try:
        root = (read_description(Path(path))[2].get("data") or {}).get("root_dir")
    except CheckpointError:
        root = None
    if not root:
        told = f"{path} does not say (or is not there) what {bundle.path} was collected over; give data=DIR"
        raise ConfigError([Problem("data", told)])
    return Path(root)
