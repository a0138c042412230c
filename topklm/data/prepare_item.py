"""One work item to token shards: what a worker process of the preparation does."""

from __future__ import annotations

import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from topklm.config import build
from topklm.data.readers import read_item
from topklm.data.shards import SPLITS, ShardInfo, ShardWriter, shard_files
from topklm.data.sources import BadDocument, Document, SourceConfig, WorkItem
from topklm.data.split import split_of
from topklm.data.tokenizers import Tokenizer, open_saved_tokenizer
from topklm.errors import ConfigError, DataError

log = logging.getLogger("topklm.data")

WORK = ".preparing"
"""Directory inside a source's directory that holds the state of an unfinished preparation."""

_ALL_BAD = 1000
_REPORT_EVERY = 64


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all items of a source have in common; goes to the worker processes."""

    directory: str
    """The source's directory."""
    source: str
    config: SourceConfig
    dtype: str
    add_bos: bool
    add_eos: bool
    val_fraction: float
    split_salt: str
    max_document_bytes: int
    shard_tokens: int
    max_skipped: int | float

    @property
    def work(self) -> Path:
        return Path(self.directory) / WORK


@dataclass(frozen=True, kw_only=True)
class ItemResult:
    """The record of a finished item, `items/NNNNN.json`."""

    index: int
    seen: int
    """Documents read, good and bad."""
    skipped: dict[str, int]
    """Bad ones by reason."""
    skipped_bytes: int
    """Size of the list of the bad ones, `skipped/NNNNN.jsonl`."""
    shards: list[ShardInfo]


class StoppedError(Exception):
    """Another item failed or the user interrupted; this item is given up and redone next time."""


class ItemWorker:
    """Prepares items of one job. `report(documents, bytes of text)` is called now and then; it may raise to stop."""

    def __init__(self, job: Job, report: Callable[[int, int], None]):
        self.job, self.report = job, report
        self.tokenizer: Tokenizer = open_saved_tokenizer(job.work / "tokenizer")

    def __call__(self, item: WorkItem) -> ItemResult:
        """Write the item's shards and list of skipped documents, then its record.

        Everything is written into a directory of this attempt and renamed when complete. So an interrupted item
        leaves nothing behind that counts, and two attempts at once cannot mix.
        """
        attempt = Path(tempfile.mkdtemp(prefix="attempt-", dir=self.job.work))
        try:
            result = self._write(item, attempt)
            for shard in result.shards:
                for name in shard_files(shard, self.job.dtype):
                    os.replace(attempt / name, Path(self.job.directory) / name)
            os.replace(attempt / "skipped.jsonl", skipped_path(self.job.work, item.index))
            write_json(result_path(self.job.work, item.index), asdict(result))
        finally:
            shutil.rmtree(attempt, ignore_errors=True)
        return result

    def _write(self, item: WorkItem, attempt: Path) -> ItemResult:
        job, skipped, seen = self.job, Counter[str](), 0
        prefix = f"{item.index:05d}"
        writers = {s: ShardWriter(attempt, s, prefix, job.dtype, job.shard_tokens) for s in SPLITS}
        with (
            writers["train"],
            writers["val"],
            open(attempt / "skipped.jsonl", "w", encoding="utf-8") as bad,
        ):
            for document in self._counted(read_item(job.config, item, job.max_document_bytes)):
                seen += 1
                if isinstance(document, BadDocument):
                    skipped[document.reason] += 1
                    line = {"source": job.source, **asdict(document)}
                    bad.write(json.dumps(line, ensure_ascii=True) + "\n")
                    self._check_limit(skipped.total(), seen, attempt, bad)
                else:
                    ids = self.tokenizer.encode(document.text, bos=job.add_bos, eos=job.add_eos)
                    split = document.split or split_of(document.text, job.val_fraction, job.split_salt)
                    writers[split].add(ids, len(document.text.encode()))
        shards = [shard for split in SPLITS for shard in writers[split].close()]
        return ItemResult(
            index=item.index,
            seen=seen,
            skipped=dict(sorted(skipped.items())),
            skipped_bytes=(attempt / "skipped.jsonl").stat().st_size,
            shards=shards,
        )

    def _counted(self, documents: Iterator[Document | BadDocument]) -> Iterator[Document | BadDocument]:
        n = n_bytes = 0
        for document in documents:
            yield document
            n += 1
            n_bytes += len(document.text.encode()) if isinstance(document, Document) else 0
            if n == _REPORT_EVERY:
                self.report(n, n_bytes)
                n = n_bytes = 0
        self.report(n, n_bytes)

    def _check_limit(self, skipped: int, seen: int, attempt: Path, bad: Any) -> None:
        limit = self.job.max_skipped
        # A share is known at the end only; but a wrong text_field shows at once.
        hopeless = skipped == seen == _ALL_BAD and limit < 1
        if hopeless or (isinstance(limit, int) and skipped > limit):
            bad.flush()
            raise DataError(too_many_skipped(self.job, skipped, seen, [attempt / "skipped.jsonl"]))


def too_many_skipped(job: Job, skipped: int, seen: int, lists: list[Path], show: int = 5) -> str:
    """Message with the first skipped documents out of the files `lists`."""
    first: list[str] = []
    reasons = set()
    for path in lists:
        with open(path, encoding="utf-8") as file:
            for line in file:
                bad = json.loads(line)
                reasons.add(bad["reason"])
                first.append(f"  - {bad['location']}: {bad['reason']} {bad['detail']}".rstrip())
                if len(first) == show:
                    break
        if len(first) == show:
            break
    field = f"set sources.{job.source}.text_field, " if "missing_field" in reasons else ""
    return (
        f"source {job.source}: {skipped} of {seen} documents cannot be used, more than max_skipped="
        f"{job.max_skipped} allows. The first ones:\n"
        + "\n".join(first)
        + f"\nRepair them, {field}or raise max_skipped "
        "(a number, or a share such as 0.05) and run the same command again; finished work is kept"
    )


def result_path(work: Path, index: int) -> Path:
    return work / "items" / f"{index:05d}.json"


def skipped_path(work: Path, index: int) -> Path:
    return work / "skipped" / f"{index:05d}.jsonl"


def read_result(job: Job, index: int) -> ItemResult | None:
    """The record of an item; None if it is not finished, or if a file of it was lost or cut: then it is redone."""
    path = result_path(job.work, index)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise TypeError("not a record")
        result = build(ItemResult, record)
    except (ValueError, TypeError, ConfigError) as error:
        log.warning("%s is damaged (%s); the work item is done again", path, error)
        return None
    sizes = {skipped_path(job.work, index): result.skipped_bytes}
    for shard in result.shards:
        sizes |= {Path(job.directory) / name: size for name, size in shard_files(shard, job.dtype).items()}
    for file, size in sizes.items():
        if not file.is_file() or file.stat().st_size != size:
            log.warning("%s is missing or not of its size; the work item is done again", file)
            return None
    return result


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, all or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(data, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


# In a worker process

_worker: ItemWorker | None = None


def start_worker(job: Job, counters: Any, stop: Any) -> None:
    """Initialise a worker process; `counters` [documents, bytes] and the event `stop` are shared by all."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's; it sets `stop`
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    def report(documents: int, n_bytes: int) -> None:
        with counters.get_lock():
            counters[0] += documents
            counters[1] += n_bytes
        if stop.is_set():
            raise StoppedError

    _worker = ItemWorker(job, report)


def work_on(item: WorkItem) -> ItemResult:
    assert _worker is not None
    return _worker(item)


def _exit_with_parent() -> None:
    """A killed main process must not leave workers behind that write on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
