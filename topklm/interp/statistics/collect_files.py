"""The files of a collection that is under way: what is finished in NAME.tmp, and how it becomes NAME.

    NAME.tmp/plan/              meta.json of what is collected, and the groups of layers; nothing else goes on here
    NAME.tmp/work/SHARE/        a rank's finished share of a part, for a group of layers; SHARE is PART-GROUP-RANKofSIZE
    NAME.tmp/work/SHARE.N/      its state after N windows
    NAME.tmp/parts/00a/         finished parts
    NAME.tmp/whole/             the bundle, before it gets its name

Shares, states and parts are bundles themselves, so that reading one checks it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from topklm.bundles import Bundle, LayerStats, Meta, open_bundle, write_bundle
from topklm.bundles.bundle import PARTS
from topklm.bundles.merge import merge_layer, merge_metas, windows_hash
from topklm.bundles.meta import read_meta, write_meta
from topklm.bundles.write import finish, publish, write_corpus, write_layer, write_model
from topklm.errors import ConfigError, DataError, Problem
from topklm.ranks import Ranks

Layers = Iterable[tuple[int, LayerStats]]


class Workplace:
    """Where one bundle is made: `meta` is what it will say. Every rank has one, and calls the same methods."""

    def __init__(self, path: Path, meta: Meta, ranks: Ranks) -> None:
        self.path, self.meta, self.ranks = path, meta, ranks
        self.tmp = path.with_name(f"{path.name}.tmp")
        self.names = [part.name for part in meta.parts] or ["00"]

    def is_done(self, overwrite: bool, any_parts: bool = False) -> bool:
        """Rank 0: whether the bundle is there; with `any_parts` also if it is divided otherwise. Raises if something
        else is, unless it may be replaced."""
        if (there := self._opened(self.tmp / "whole")) is not None and not self._differences(there.meta):
            self._give_name()
        if not self.path.exists():
            return False
        if overwrite and (there := self._opened(self.path)) is None:
            return False
        different = self._differences(open_bundle(self.path).meta, any_parts)
        if different and not overwrite:
            raise ConfigError(
                f"{self.path} holds another collection ({'; '.join(different)}); give another directory (out=DIR), or "
                "replace it with overwrite=true"
            )
        return not different

    @contextmanager
    def held(self, overwrite: bool) -> Iterator[None]:
        """The place is this job's: made if it is new, checked if it is not, locked against other processes."""
        lock = self.ranks.first(lambda: self._prepare(overwrite))
        try:
            yield
        finally:
            if self.ranks.is_first:
                os.close(lock)

    def keep_groups(self, groups: list[list[int]]) -> list[list[int]]:
        """Rank 0: the groups of layers that were decided at the first start; these, if this is it."""
        file = self.tmp / "plan" / "groups.json"
        if file.exists():
            return json.loads(file.read_text())
        file.with_suffix(".tmp").write_text(json.dumps(groups))
        os.replace(file.with_suffix(".tmp"), file)
        return groups

    def has_part(self, number: int) -> bool:
        """Rank 0: whether a part is finished."""
        return _opened_or_removed(self._part(number)) is not None

    def share(self, number: int, group: int, layers: Sequence[int]) -> Share:
        """This rank's share of a part, for a group of layers."""
        kinds = {str(layer): self.meta.layers[str(layer)] for layer in layers}
        meta = dataclasses.replace(self.meta, layers=kinds, parts=[])
        return Share(self._share_path(number, group, self.ranks.rank), meta)

    def assemble(self, number: int, groups: Sequence[Sequence[int]]) -> None:
        """Once every rank has finished its shares: the part, whose layers the ranks put together in turns."""
        self.ranks.wait()
        part, draft = self._part(number), self._part(number).with_suffix(".tmp")
        paths = [[self._share_path(number, g, rank) for rank in range(self.ranks.size)] for g in range(len(groups))]
        if self.ranks.size == len(groups) == 1:
            part.parent.mkdir(exist_ok=True)
            os.replace(paths[0][0], part)
            return
        shares = [[open_bundle(path) for path in of_group] for of_group in paths]
        meta, windows = merge_metas(shares[0])
        meta = dataclasses.replace(meta, layers=self.meta.layers)

        def begin() -> None:
            shutil.rmtree(draft, ignore_errors=True)
            write_corpus(draft, np.sum([share.counts for share in shares[0]], axis=0), windows)

        self.ranks.first(begin)
        by_layer = {layer: of_group for group, of_group in zip(groups, shares, strict=True) for layer in group}
        self._merge_in_turns(draft, by_layer)

        def end() -> None:
            finish(draft, meta, None)
            publish(draft, part)
            for path in (path for of_group in paths for path in of_group):
                shutil.rmtree(path)

        self.ranks.first(end)

    def publish(self, checks: dict[str, Any], embedding: np.ndarray, tokens: list[str] | None) -> None:
        """Once all parts are finished: the whole, with what is told of the model, which gets its name."""
        whole = self.tmp / "whole"
        parts = [open_bundle(self._part(number)) for number in range(len(self.names))]
        meta, windows = merge_metas(parts)
        meta = dataclasses.replace(meta, parts=self.meta.parts, checks=checks)

        def begin() -> None:
            shutil.rmtree(whole, ignore_errors=True)
            if len(parts) > 1:
                write_corpus(whole, np.sum([part.counts for part in parts], axis=0), windows)
                return
            whole.mkdir()
            for name in parts[0].meta.files:
                os.link(parts[0].path / name, whole / name)

        def end() -> None:
            write_model(whole, embedding, tokens)
            finish(whole, meta, windows)
            if len(parts) > 1:
                os.replace(self.tmp / PARTS, whole / PARTS)
            self._give_name()

        self.ranks.first(begin)
        if len(parts) > 1:
            self._merge_in_turns(whole, dict.fromkeys(map(int, self.meta.layers), parts))
        self.ranks.first(end)

    def _merge_in_turns(self, directory: Path, bundles: dict[int, list[Bundle]]) -> None:
        """Write each layer's file, merged of its bundles; the ranks take turns."""
        for turn, (layer, of_layer) in enumerate(bundles.items()):
            if turn % self.ranks.size == self.ranks.rank:
                write_layer(directory, layer, merge_layer(of_layer, layer))
        self.ranks.wait()

    def _give_name(self) -> None:
        if self.path.exists():
            replaced = self.path.with_name(f"{self.path.name}.replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(self.path, replaced)
            publish(self.tmp / "whole", self.path)
            shutil.rmtree(replaced)
        else:
            publish(self.tmp / "whole", self.path)
        shutil.rmtree(self.tmp)

    def _prepare(self, overwrite: bool) -> int:
        plan = self.tmp / "plan"
        try:
            self.tmp.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.tmp / ".lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise ConfigError([Problem("out", f"{self.tmp} cannot be written: {error.strerror}")]) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            different = self._differences(read_meta(plan)[0]) if plan.exists() else []
            if different and not overwrite:
                raise ConfigError(
                    f"{self.tmp} is an unfinished collection of something else ({'; '.join(different)}); finish it "
                    "with its own settings, give another directory (out=DIR), or drop it with overwrite=true"
                )
            if different:
                for directory in (plan, self.tmp / "work", self.tmp / PARTS):
                    shutil.rmtree(directory, ignore_errors=True)
            if not plan.exists():
                draft = self.tmp / "plan.tmp"
                draft.mkdir(exist_ok=True)
                write_meta(draft, self.meta)
                publish(draft, plan)
        except BlockingIOError:
            os.close(lock)
            raise ConfigError([Problem("out", f"{self.tmp} is in use by another process")]) from None
        except Exception:
            os.close(lock)
            raise
        self._drop_shares_of_other_worlds()
        return lock

    def _drop_shares_of_other_worlds(self) -> None:
        """Shares of another number of ranks do not add up with these; what is not finished begins anew."""
        work = self.tmp / "work"
        work.mkdir(exist_ok=True)
        for path in work.iterdir():
            if not path.name.split(".")[0].endswith(f"of{self.ranks.size}"):
                shutil.rmtree(path)

    def _differences(self, there: Meta, any_parts: bool = False) -> list[str]:
        """How another meta's collection differs from this one; empty if it is the same."""
        different = self.meta.differences(there)
        if not different and self.meta.windows_sha256 != there.windows_sha256:
            different = [f"tokens: {self.meta.n_tokens:,} and {there.n_tokens:,}"]
        if not different and not any_parts and self.meta.parts != there.parts:
            different = ["snapshots, halves: other parts"]
        return different

    def _opened(self, path: Path) -> Bundle | None:
        try:
            return open_bundle(path) if path.exists() else None
        except DataError:
            return None

    def _part(self, number: int) -> Path:
        return self.tmp / PARTS / self.names[number]

    def _share_path(self, number: int, group: int, rank: int) -> Path:
        return self.tmp / "work" / f"{self.names[number]}-{group}-{rank}of{self.ranks.size}"


class Share:
    """One rank's share of one part, for a group of layers."""

    def __init__(self, path: Path, meta: Meta) -> None:
        self.path, self._meta = path, meta
        self._made = list(meta.made)

    def is_done(self) -> bool:
        """Whether it was finished before."""
        return _opened_or_removed(self.path) is not None

    def newest_state(self, windows: np.ndarray) -> Bundle | None:
        """The newest sound state of a share of these windows [w]; others are removed."""
        for path in sorted(self.path.parent.glob(f"{self.path.name}.*"), reverse=True):
            state = None if path.suffix == ".tmp" else _opened_or_removed(path)
            if state is not None and np.array_equal(state.windows, windows[: len(state.windows)]):
                self._made = list(dict.fromkeys([*state.meta.made, *self._meta.made]))
                return state
            shutil.rmtree(path, ignore_errors=True)
        return None

    def save_state(self, counts: np.ndarray, windows: np.ndarray, layers: Layers) -> None:
        """Keep the state after these windows instead of earlier ones."""
        path = self.path.with_name(f"{self.path.name}.{len(windows):010d}")
        self._write(path, counts, windows, layers)
        self._remove_states(but=path)

    def finish(self, counts: np.ndarray, windows: np.ndarray, layers: Layers) -> None:
        """Write the share of all its windows."""
        self._write(self.path, counts, windows, layers)
        self._remove_states()

    def _write(self, path: Path, counts: np.ndarray, windows: np.ndarray, layers: Layers) -> None:
        meta = dataclasses.replace(
            self._meta,
            n_tokens=len(windows) * self._meta.corpus.context,
            n_windows=len(windows),
            windows_sha256=windows_hash(windows),
            made=self._made,
        )
        write_bundle(path, meta, counts, windows, layers, neurons=False)

    def _remove_states(self, but: Path | None = None) -> None:
        for path in self.path.parent.glob(f"{self.path.name}.*"):
            if path != but:
                shutil.rmtree(path)


def _opened_or_removed(path: Path) -> Bundle | None:
    """A bundle whose every file is sound; what is not is removed."""
    if not path.exists():
        return None
    try:
        bundle = open_bundle(path)
        bundle.check()
    except DataError:
        shutil.rmtree(path)
        return None
    return bundle
