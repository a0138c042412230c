"""Which dimension goes with a token, and which tokens with a dimension.

The strength of token v in dimension i of a layer is its place in the dimension's profile, in standard deviations:

    z_i(v) = (x_i(v) - mean_v x_i) / sd_v x_i,    x_i(v) = abar_i(v) - mean_j abar_j(v)

with abar_i(v) the mean activation of i on v; a dimension that is high on every token is strong on none. Dimensions of a
token, and tokens of a dimension, are ranked by the mean strength over some layers of one checkpoint.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from topklm.bundles import Bundle, LayerView
from topklm.checkpoint.load import stored_tokenizers
from topklm.errors import ConfigError, Problem, TopklmError
from topklm.interp.profiles import token_profiles


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """Of all dimensions and token types, over some layers of one checkpoint."""

    types: np.ndarray
    """int64 [R] token types."""
    mean: np.ndarray
    """float32 [N, R] mean strength over the layers; a layer in which a dimension is silent counts as 0."""
    layers: list[int]
    """The layers."""

    def column(self, token: int) -> int:
        """Where a token stands."""
        return int(np.searchsorted(self.types, token))

    def dimensions(self, token: int) -> np.ndarray:
        """int64 [N] by falling strength for the token."""
        return np.argsort(-self.mean[:, self.column(token)], kind="stable")

    def tokens(self, dimension: int) -> np.ndarray:
        """int64 [R] token types by falling strength in the dimension."""
        return self.types[np.argsort(-self.mean[dimension], kind="stable")]

    def percentile(self, token: int) -> tuple[float, float]:
        """(share of types whose strongest dimension is weaker than this token's, the median of the strongest): the
        strongest of N dimensions is high for any token."""
        best = self.mean.max(0)
        return float((best < best[self.column(token)]).mean()), float(np.median(best))


def layer_strengths(view: LayerView, types: np.ndarray) -> np.ndarray:
    """float32 [N, R]: the strength of each type in each dimension of a layer; 0 where a dimension is silent."""
    rows = token_profiles(view, types, centre="both").rows  # of mean 0 and length 1
    return rows * np.float32(math.sqrt(len(types)))


def strengths(bundle: Bundle, layers: Sequence[int], types: np.ndarray) -> Strengths:
    """Mean strengths over layers, read one after the other."""
    total = np.zeros((bundle.meta.model.dim, len(types)), np.float32)
    for layer in layers:
        total += layer_strengths(bundle.layer(layer), types)
    return Strengths(types=types, mean=total / np.float32(len(layers)), layers=list(layers))


def token_means(view: LayerView, token: int) -> np.ndarray:
    """float64 [N]: the mean activation of each neuron on one token type, which has to have occurred."""
    for types, rows in view.table_blocks("sum"):
        if len(at := np.flatnonzero(types == token)):
            return rows[at[0]] / view.bundle.counts[token]
    raise ValueError(f"token {token} did not occur")


def find_token(text: str | None, number: int | None, bundle: Bundle) -> int:
    """The token type that a user means by a text or a number. Raises `ConfigError` with what there is instead."""
    vocab = bundle.vocab_size
    if number is not None:
        if not 0 <= number < vocab:
            raise ConfigError([Problem("token_id", f"{number} is not one of the {vocab:,} token types")])
        return number
    pieces = bundle.tokens
    if pieces is None:
        raise ConfigError([Problem("token", f"{bundle.path} does not know its tokens as text; give token_id")])
    found = [i for i, piece in enumerate(pieces) if piece == text]
    if found:
        return max(found, key=lambda i: int(bundle.counts[i]))
    raise ConfigError([Problem("token", _advice(str(text), pieces, bundle))])


def _advice(text: str, pieces: Sequence[str], bundle: Bundle) -> str:
    told = [f"{text!r} is not one token of this model"]
    ids = _encoded(text, bundle)
    if len(ids) > 1:
        told.append("it is " + " + ".join(f"{pieces[i]!r} ({i})" for i in ids) + ": give one of them")
    for near in (f" {text}", text.strip()):
        if near != text and near in pieces:
            told.append(f"there is {near!r} (with{'' if near[:1] == ' ' else 'out'} a space before it)")
    if len(told) == 1:
        close = difflib.get_close_matches(text, [p for i, p in enumerate(pieces) if bundle.counts[i]], 5)
        told.append("near it are " + ", ".join(map(repr, close)) if close else "give another, or token_id")
    return "; ".join(told)


def _encoded(text: str, bundle: Bundle) -> list[int]:
    """The tokens of a text by the checkpoint's own tokenizer, if it is still where the bundle was made."""
    try:
        tokenizers = stored_tokenizers(Path(bundle.meta.model.path))
        # Some put a space before the text themselves: then the text without its own gives its tokens.
        ways = [tokenizers[0].encode(each) for each in (text, text.removeprefix(" "))] if tokenizers else [[]]
    except (TopklmError, OSError):
        return []
    pieces = bundle.tokens or []
    return next((ids for ids in ways if "".join(pieces[i] for i in ids) == text), ways[0])
