"""The tokens on which two forms of a model are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from topklm.data import HeldOut
from topklm.errors import ConfigError, Problem
from topklm.export.source import Source

LONGEST = 512
"""Tokens in a window, at most."""

SAMPLE = """\
Call me Ishmael. Some years ago - never mind how long precisely - having little or no money in my purse, and nothing
particular to interest me on shore, I thought I would sail about a little and see the watery part of the world. It is a
way I have of driving off the spleen and regulating the circulation. Whenever I find myself growing grim about the
mouth; whenever it is a damp, drizzly November in my soul; whenever I find myself involuntarily pausing before coffin
warehouses, and bringing up the rear of every funeral I meet; and especially whenever my hypos get such an upper hand
of me, that it requires a strong moral principle to prevent me from deliberately stepping into the street, and
methodically knocking people's hats off - then, I account it high time to get to sea as soon as I can.

Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, and
dedicated to the proposition that all men are created equal. Now we are engaged in a great civil war, testing whether
that nation, or any nation so conceived and so dedicated, can long endure. We are met on a great battle-field of that
war. We have come to dedicate a portion of that field, as a final resting place for those who here gave their lives
that that nation might live. It is altogether fitting and proper that we should do this.

It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was
the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness, it was
the spring of hope, it was the winter of despair, we had everything before us, we had nothing before us, we were all
going direct to Heaven, we were all going direct the other way.
"""
"""Melville (1851), Lincoln (1863) and Dickens (1859), for models whose data is not at hand."""


def comparison_tokens(source: Source, n_tokens: int, file: Path | None = None) -> tuple[Tensor, str]:
    """(int64 [N, T], what they are): about `n_tokens` in windows that fit the model's context.

    Of `file`; else of the held-out text of the run, spread evenly over it; else of `SAMPLE`; and random ids for a
    model without tokenizer. Raises `ConfigError` for a text that cannot be read or encoded.
    """
    window = max(1, min(source.config.model.max_seqlen, LONGEST, n_tokens))
    if file is None and source.held_out is not None:
        tokens = _spread(source.held_out, window, n_tokens)
        return tokens, f"held-out text of {', '.join(source.held_out.names)}"
    if source.tokenizer is None:
        if file is not None:
            raise ConfigError([Problem("text", "the model has no tokenizer; leave it out, random tokens are used")])
        generator = torch.Generator().manual_seed(0)
        shape = (max(1, n_tokens // window), window)
        return torch.randint(source.config.model.vocab_size, shape, generator=generator), "random tokens"
    try:
        text = SAMPLE if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem("text", f"{file} cannot be read: {error}")]) from error
    ids = source.tokenizer.encode(text, bos=source.adds_bos())[:n_tokens]
    if len(ids) < 2:
        raise ConfigError([Problem("text", f"{file} has fewer than two tokens")])
    window = min(window, len(ids))
    n = len(ids) // window
    return torch.tensor(ids[: n * window]).view(n, window), "sample text" if file is None else f"text of {file.name}"


def _spread(held_out: HeldOut, window: int, n_tokens: int) -> Tensor:
    """Windows evenly spaced over each source's held-out tokens; the sources have equal shares."""
    share = max(1, n_tokens // window // len(held_out.arrays))
    rows = []
    for array in held_out.arrays.values():
        length = min(window, len(array))
        if length == window:
            starts = np.linspace(0, len(array) - window, share).astype(int)
            rows += [array.read(start, start + window) for start in np.unique(starts).tolist()]
    if not rows:  # shorter than one window altogether
        longest = max(held_out.arrays.values(), key=len)
        rows = [longest.read(0, len(longest))]
    return torch.from_numpy(np.stack(rows).astype(np.int64))
