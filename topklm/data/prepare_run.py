"""Running work items, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any

from topklm.data.prepare_item import ItemResult, ItemWorker, Job, start_worker, work_on
from topklm.data.progress import PrepareProgress
from topklm.data.sources import WorkItem
from topklm.errors import DataError

_POLL_SECONDS = 0.5


def run_items(job: Job, todo: list[WorkItem], items: list[WorkItem], workers: int) -> Generator[ItemResult, None, None]:
    """Prepare the items `todo` out of `items`; results as they come, in any order, with progress shown.

    If an item fails or the caller stops, the others are given up at their next document; finished ones stay.
    """
    size = {item.index: item.size for item in items}
    total = sum(size.values())
    finished = total - sum(item.size for item in todo)
    workers = min(workers or _cpus(), len(todo))
    context = multiprocessing.get_context("spawn")  # fork would copy locks that other threads hold
    counters, stop = context.Array("q", 2), context.Event()
    with PrepareProgress(job.source, total, finished) as progress:
        results = _here(job, todo, counters, stop) if workers <= 1 else _pool(job, todo, workers, counters, stop)
        with closing(results):
            for result in results:
                if result is not None:
                    finished += size[result.index]
                progress.update(finished, *counters[:])
                if result is not None:
                    yield result


_Results = Generator[ItemResult | None, None, None]


def _here(job: Job, todo: list[WorkItem], counters: Any, stop: Any) -> _Results:
    worker = ItemWorker(job, counters, stop)
    for item in todo:
        yield worker(item)


def _pool(job: Job, todo: list[WorkItem], workers: int, counters: Any, stop: Any) -> _Results:
    """Results of the worker processes, None now and then so that progress can be shown."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(job, counters, stop)) as pool:
        pending: set[Future[ItemResult]] = {pool.submit(work_on, item) for item in todo}
        try:
            while pending:
                done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                yield None
        except BrokenProcessPool as error:
            raise DataError(
                f"source {job.source}: a worker process died, perhaps for lack of memory; try fewer workers or a "
                "smaller max_document_bytes. Run the same command again; finished work is kept"
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
