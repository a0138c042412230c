"""Which windows make up which batch: a pure function of (seed, sample number), whatever the world size.

A window is `seq_len + 1` tokens: inputs and the targets one further on. Window w of a source begins at token
w * seq_len, so every token but the first is a target once per epoch.

Sample n of a run (batch `step` of B sequences is samples [step * B, (step + 1) * B)) is found in two stages:

1. Its source. The samples come in blocks of `BLOCK`. How many of a block's samples belong to each source is
   decided by systematic sampling: with C_s the cumulative shares of the weights and u uniform in [0, 1) from the
   seed, the first n samples at a block's border hold floor(n C_s + u) - floor(n C_{s-1} + u) of source s. That
   is n times the source's share in expectation over the seed, and off by less than one sample for any seed. A
   seeded shuffle spreads them over the block, so each single sample has the source's share as its probability.
   Counts need no history: a run starts at any step as fast as at step 0.
2. Its window. The i-th sample of a source is the i-th window of a seeded permutation, epoch after epoch, each
   with a permutation of its own.

Random numbers are raw Philox words, and permutations are stable argsorts of them. NumPy promises the raw words
for all its versions, but not what its distributions and shuffles make of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

BLOCK = 4096
ORDER_VERSION = 1
"""Part of the data fingerprint; a change of the order in this file must raise it."""


def n_windows(n_tokens: int, seq_len: int) -> int:
    """Windows of `seq_len` inputs with their targets in `n_tokens` consecutive tokens."""
    return max(0, (n_tokens - 1) // seq_len)


def n_unused_tokens(n_tokens: int, seq_len: int) -> int:
    """Tokens at the end of a source that are in no window."""
    windows = n_windows(n_tokens, seq_len)
    return n_tokens - (windows * seq_len + 1) if windows else n_tokens


class SampleOrder:
    """The order of all samples of a run.

    Parameters: `windows` (source name -> its windows, at least one), `weights` (source name -> weight > 0, of any
    sum), `seed` >= 0. Sources are numbered by their sorted names, so that the order in a YAML does not matter.
    Memory: 8 bytes per window of a source, for the permutation in use.
    """

    def __init__(self, windows: Mapping[str, int], weights: Mapping[str, float], seed: int):
        if set(windows) != set(weights) or not windows:
            raise ValueError(f"sources {sorted(windows)} do not match the weights of {sorted(weights)}")
        if min(windows.values()) < 1 or not min(weights.values()) > 0:
            raise ValueError("every source needs a window and a weight above 0")
        self.names = sorted(windows)
        self.seed = seed
        self._windows = np.array([windows[name] for name in self.names])
        share = np.array([weights[name] for name in self.names], dtype=np.float64)
        self._cumulative = np.append(0.0, np.cumsum(share) / share.sum())
        self._cumulative[-1] = 1.0  # not 1 - 1e-16, which could lose a sample
        self._shift = float(_uniform(_words(1, seed, "shift"))[0])
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def samples(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, window) of the samples [start, stop), two int64 arrays [stop - start]."""
        source, drawn = self._draws(start, stop)
        window = np.empty_like(drawn)
        for s in range(len(self.names)):
            of_source = np.flatnonzero(source == s)
            epoch, place = np.divmod(drawn[of_source], self._windows[s])
            for e in np.unique(epoch):
                here = epoch == e
                window[of_source[here]] = self._permutation(s, int(e))[place[here]]
        return source, window

    def counts(self, n: int) -> np.ndarray:
        """How many of the first `n` samples come from each source, int64 [n_sources]."""
        block, within = divmod(n, BLOCK)
        counts = self._counts_before(block)
        if within:
            counts = counts + np.bincount(self._block(block)[0][:within], minlength=len(self.names))
        return counts

    def epochs(self, n: int) -> dict[str, float]:
        """How often each source has been gone through after the first `n` samples."""
        seen = self.counts(n) / self._windows
        return dict(zip(self.names, seen.tolist(), strict=True))

    def _draws(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each sample, and how many samples that source had before it."""
        parts = []
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            base = block * BLOCK
            part = slice(max(start - base, 0), min(stop - base, BLOCK))
            source, drawn = self._block(block)
            parts.append((source[part], drawn[part]))
        if not parts:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        sources, draws = zip(*parts, strict=True)
        return np.concatenate(sources), np.concatenate(draws)

    def _counts_before(self, block: int) -> np.ndarray:
        return np.diff(np.floor(block * BLOCK * self._cumulative + self._shift)).astype(np.int64)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, samples of that source before it) of every sample of one block, int64 [BLOCK] each."""
        if block not in self._blocks:
            before = self._counts_before(block)
            counts = self._counts_before(block + 1) - before
            shuffle = np.argsort(_words(BLOCK, self.seed, "block", block), kind="stable")
            source = np.repeat(np.arange(len(counts)), counts)[shuffle]
            drawn = np.empty(BLOCK, np.int64)
            for s, n_before in enumerate(before):
                of_source = np.flatnonzero(source == s)
                drawn[of_source] = n_before + np.arange(len(of_source))
            while len(self._blocks) >= 2:  # batches go forward: the last two blocks are enough
                del self._blocks[next(iter(self._blocks))]
            self._blocks[block] = source, drawn
        return self._blocks[block]

    def _permutation(self, source: int, epoch: int) -> np.ndarray:
        """Order of the windows of a source in one epoch, int64 [n_windows]; only the latest is kept."""
        cached = self._permutations.get(source)
        if cached is None or cached[0] != epoch:
            words = _words(int(self._windows[source]), self.seed, "epoch", self.names[source], epoch)
            cached = self._permutations[source] = epoch, np.argsort(words, kind="stable")
        return cached[1]


def _words(n: int, *key: object) -> np.ndarray:
    """`n` random words, uint64, that depend on `key` alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    raw = np.random.Philox(np.random.SeedSequence(int.from_bytes(digest, "little"))).random_raw(n)
    return np.asarray(raw, dtype=np.uint64)


def _uniform(words: np.ndarray) -> np.ndarray:
    """Words to float64 in [0, 1)."""
    return (words >> np.uint64(11)) * 2.0**-53
