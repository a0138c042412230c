"""Which windows of a corpus are read, in which parts, and what stands in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from topklm.bundles import Corpus, CorpusPart, PartMeta
from topklm.data import TokenArray, read_manifest
from topklm.data.shards import MANIFEST, SPLITS, Manifest, Split
from topklm.errors import DataError
from topklm.interp.statistics.token_batch import hash32

PREPARE = "python -m apps.prepare config=FILE"
_LEAST_SNAPSHOT = 8
"""Windows; automatic snapshots of fewer are left out."""


@dataclass(frozen=True, kw_only=True)
class PlannedPart:
    """Windows whose statistics are kept apart."""

    name: str
    """00a: the first snapshot's half a; 00 where there are no halves."""
    snapshot: int
    """It belongs to this snapshot and all larger ones."""
    half: Literal["a", "b"] | None
    windows: np.ndarray
    """int64 [w], ascending: positions of the first tokens."""

    def meta(self, context: int) -> PartMeta:
        """As the bundle records it."""
        tokens = len(self.windows) * context
        return PartMeta(name=self.name, snapshot=self.snapshot, half=self.half, n_tokens=tokens)


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """The tokens of a collection."""

    corpus: Corpus
    arrays: list[TokenArray]
    """One for each of `corpus.parts`."""
    parts: list[PlannedPart]
    """Disjoint; together all windows."""
    n_left_out: int
    """Tokens at the ends of sources that fill no window, of the sources that are read."""

    @property
    def n_windows(self) -> int:
        return sum(len(part.windows) for part in self.parts)

    @property
    def n_tokens(self) -> int:
        return self.n_windows * self.corpus.context

    def read(self, windows: np.ndarray) -> np.ndarray:
        """Tokens int64 [w, context] of the windows that begin at these positions."""
        context = self.corpus.context
        out = np.empty((len(windows), context), np.int64)
        for row, (array, start) in enumerate(self._places(windows)):
            array.read_into(start, out[row])
        return out

    def document_ids(self, windows: np.ndarray) -> np.ndarray:
        """int64 [w, context]: the document of each token within its source."""
        context = self.corpus.context
        return np.stack([array.document_ids(start, start + context) for array, start in self._places(windows)])

    def counts(self, windows: np.ndarray, vocab_size: int) -> np.ndarray:
        """int64 [V]: how often each token type occurs in these windows. Raises `DataError` for ids beyond V."""
        counts = np.zeros(vocab_size, np.int64)
        for start in range(0, len(windows), 1024):
            found = np.bincount(self.read(windows[start : start + 1024]).ravel(), minlength=vocab_size)
            if len(found) > vocab_size:
                raise DataError(
                    f"the corpus has token {len(found) - 1}, the model knows {vocab_size}; prepare it with the model's "
                    f"tokenizer: {PREPARE}"
                )
            counts += found
        return counts

    def _places(self, windows: np.ndarray) -> list[tuple[TokenArray, int]]:
        """(array, index of the first token in it) of each window."""
        firsts = np.cumsum([0, *(part.n_tokens for part in self.corpus.parts)])
        which = np.searchsorted(firsts, windows, side="right") - 1
        return [
            (self.arrays[i], int(start - firsts[i])) for i, start in zip(which.tolist(), windows.tolist(), strict=True)
        ]


def plan_windows(
    root: Path,
    sources: Sequence[str],
    split: Literal["val", "train", "all"],
    *,
    context: int,
    tokens: int,
    snapshots: Sequence[int] | None,
    halves: bool,
    document_mask: bool = False,
) -> WindowPlan:
    """Choose the windows: whole ones, at most `tokens`, spaced evenly over each split of each source.

    Each has its share of the tokens, and at least one window. The windows are put into an order by a hash of their
    positions; a snapshot of n tokens is the first n / context of them, half "a" every other one from the first.
    `snapshots` None: 1/64, 1/16 and 1/4 of all. Raises one `DataError` with all that is wrong.
    """
    parts, arrays, manifest = _open(root, sources, SPLITS if split == "all" else (split,))
    whole = np.array([part.n_tokens // context for part in parts])
    if not whole.any():
        held = sum(part.n_tokens for part in parts)
        raise DataError(
            f"{root} has {held:,} tokens of split={split}, no source a whole window of {context}; use a smaller context"
            + (", prepare it with val_fraction above 0, or take split=train" if split == "val" else "")
        )
    chosen = [
        np.arange(used) * n // max(used, 1) * context
        for n, used in zip(whole.tolist(), _shares(whole, tokens // context), strict=True)
    ]
    firsts = np.cumsum([0, *(part.n_tokens for part in parts)])
    windows = np.concatenate([first + starts for first, starts in zip(firsts, chosen, strict=False)]).astype(np.int64)
    complete = len(windows) == whole.sum()
    choice = "all whole windows" if complete else f"{len(windows)} of {whole.sum()} windows, evenly spaced"
    sizes = _snapshot_sizes(len(windows), context, snapshots)
    return WindowPlan(
        corpus=Corpus(
            parts=parts,
            tokenizer_sha256=str(manifest.tokenizer["sha256"]),
            tokenizer_name=str(manifest.tokenizer.get("name")),
            context=context,
            document_mask=document_mask,
            choice=choice,
        ),
        arrays=arrays,
        parts=_divide(windows, sizes, halves),
        n_left_out=sum(part.n_tokens % context for part in parts),
    )


def _shares(whole: np.ndarray, wanted: int) -> list[int]:
    """How many of each part's whole windows are taken if `wanted` are wanted in all."""
    total = int(whole.sum())
    if wanted >= total:
        return whole.tolist()
    return [min(n, max(1, n * wanted // total)) if n else 0 for n in whole.tolist()]


def _snapshot_sizes(n_windows: int, context: int, snapshots: Sequence[int] | None) -> list[int]:
    """Windows in each snapshot, ascending; the last is all of them."""
    if snapshots is None:
        sizes = [n for n in (n_windows // 64, n_windows // 16, n_windows // 4) if n >= _LEAST_SNAPSHOT]
    else:
        sizes = [math.ceil(n / context) for n in snapshots]
    return [*sorted({n for n in sizes if 0 < n < n_windows}), n_windows]


def _divide(windows: np.ndarray, sizes: list[int], halves: bool) -> list[PlannedPart]:
    order = windows[np.lexsort((windows, hash32(windows)))]
    parts = []
    start = 0
    for snapshot, stop in enumerate(sizes):
        added = order[start:stop]
        for half in ("a", "b") if halves else (None,):
            # Counted over all windows, so that the halves of every snapshot differ by one window at most.
            mine = added if half is None else added[(np.arange(start, stop) % 2 == 1) == (half == "b")]
            if len(mine):
                parts.append(
                    PlannedPart(name=f"{snapshot:02d}{half or ''}", snapshot=snapshot, half=half, windows=np.sort(mine))
                )
        start = stop
    return parts


def _open(
    root: Path, sources: Sequence[str], splits: Sequence[Split]
) -> tuple[list[CorpusPart], list[TokenArray], Manifest]:
    names = sorted(sources or (path.parent.name for path in root.glob(f"*/{MANIFEST}")))
    problems = [] if names else [f"{root} holds no prepared source; make one: {PREPARE}"]
    parts, arrays, manifests = [], [], {}
    for name in names:
        try:
            manifests[name] = read_manifest(root / name)
            for split in splits:
                array = TokenArray(root / name, manifests[name], split)
                fingerprint = manifests[name].fingerprint()
                parts.append(CorpusPart(source=name, split=split, n_tokens=len(array), fingerprint=fingerprint))
                arrays.append(array)
        except DataError as error:
            problems.append(str(error))
    hashes = {name: str(manifest.tokenizer.get("sha256")) for name, manifest in manifests.items()}
    if len(set(hashes.values())) > 1:
        shown = ", ".join(f"{name} {sha[:12]}" for name, sha in hashes.items())
        problems.append(f"the sources have different tokenizers ({shown}); collect them one after the other")
    if problems:
        raise DataError("; ".join(problems))
    return parts, arrays, next(iter(manifests.values()))
