"""Running work items, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing

from topklm.data.prepare_item import ItemResult, ItemWorker, Job, start_worker, work_on
from topklm.data.progress import PrepareProgress
from topklm.data.sources import WorkItem
from topklm.data.tokenizers import open_saved_tokenizer
from topklm.errors import DataError

_POLL_SECONDS = 0.5
_Results = Generator[ItemResult, None, None]


def run_items(job: Job, todo: list[WorkItem], items: list[WorkItem], workers: int) -> _Results:
    """Prepare the items `todo` out of `items`; results as they come, in any order, with progress shown.

    If an item fails or the caller stops, the others are given up at their next document; finished ones stay.
    """
    size = {item.index: item.size for item in items}
    total = sum(size.values())
    already = total - sum(item.size for item in todo)
    workers = min(workers or _cpus(), len(todo))
    with PrepareProgress(job.source, total, already, _size_of_a_byte(items)) as progress:
        results = _here(job, todo, progress) if workers <= 1 else _pool(job, todo, workers, progress)
        with closing(results):
            for result in results:
                progress.finish(size[result.index], sum(shard.n_bytes for shard in result.shards))
                yield result


def _here(job: Job, todo: list[WorkItem], progress: PrepareProgress) -> _Results:
    documents = text_bytes = 0

    def report(more_documents: int, more_bytes: int) -> None:
        nonlocal documents, text_bytes
        documents, text_bytes = documents + more_documents, text_bytes + more_bytes
        progress.update(documents, text_bytes)

    worker = ItemWorker(job, report)
    for item in todo:
        yield worker(item)


def _pool(job: Job, todo: list[WorkItem], workers: int, progress: PrepareProgress) -> _Results:
    open_saved_tokenizer(job.work / "tokenizer")  # what a worker cannot open would only be seen as a dead worker
    context = multiprocessing.get_context("spawn")  # fork would copy locks that other threads hold
    counters, stop = context.Array("q", 2), context.Event()
    with ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(job, counters, stop)) as pool:
        pending: set[Future[ItemResult]] = {pool.submit(work_on, item) for item in todo}
        try:
            while pending:
                done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                progress.update(*counters[:])
        except BrokenProcessPool as error:
            raise DataError(
                f"source {job.source}: a worker process died, perhaps for lack of memory; try fewer workers or a "
                "smaller max_document_bytes. Run the same command again; finished work is kept"
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _size_of_a_byte(items: list[WorkItem]) -> float:
    """First guess of an item's size per byte of text, for progress: hub shards say nothing, gz and zst shrink."""
    parts = [part for item in items for part in item.parts]
    if any("shard" in part for part in parts):
        return 0.0
    return 0.3 if any(str(part["file"]).endswith((".gz", ".zst")) for part in parts) else 1.0


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
