"""Token pieces as people can read them, and the tokens that neurons respond to."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from topklm.bundles import Bundle

ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
SPACE = "\u2423"
"""An open box, for spaces at the ends of a piece, where they would not be seen."""


def visible(piece: str) -> str:
    """A token piece on one line, with nothing hidden in it: spaces at its ends are open boxes, line ends, control and
    formatting characters are escapes (and so is the backslash), and so are the bytes of a SentencePiece vocabulary."""
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):  # SentencePiece's name of a byte
        code = int(byte[1], 16)
        return ESCAPES.get(chr(code), f"\\x{code:02x}")
    core = piece.strip(" ")
    front = len(piece) - len(piece.lstrip(" "))
    back = len(piece) - len(core) - front if core else 0
    return SPACE * front + "".join(map(_shown, core)) + SPACE * back


def top_tokens(
    bundle: Bundle, neurons: Sequence[tuple[int, int]], n: int, min_count: int
) -> dict[tuple[int, int], list[str]]:
    """For each (layer, neuron) the at most `n` token types with the largest mean activation above 0, as visible text.

    Types that occurred less than `min_count` times are left out; equal means by token type. Without a known tokenizer
    the types' numbers. Goes through each layer's table once, in blocks.
    """
    names = bundle.tokens
    found: dict[tuple[int, int], list[str]] = {}
    for layer in sorted({layer for layer, _ in neurons}):
        wanted = sorted({neuron for where, neuron in neurons if where == layer})
        kept = np.flatnonzero(bundle.counts >= max(1, min_count))
        means = np.zeros((len(kept), len(wanted)))
        for types, sums in bundle.layer(layer).table_blocks("sum"):
            inside = np.isin(types, kept)
            rows = np.searchsorted(kept, types[inside])
            means[rows] = sums[inside][:, wanted] / bundle.counts[types[inside], None]
        for column, neuron in enumerate(wanted):
            order = np.argsort(-means[:, column], kind="stable")[:n]
            best = [int(kept[row]) for row in order if means[row, column] > 0]
            found[layer, neuron] = [str(v) if names is None else visible(names[v]) for v in best]
    return found


def _shown(character: str) -> str:
    if character in ESCAPES:
        return ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
