"""Preparation: documents -> tokens -> shards, in parallel, resumable, and the same whatever happens on the way.

A source is divided into work items (`work_items`). Each finished item leaves its shards and a record; a killed
preparation goes on with the items that have no record. The manifest is written last, from the records in the
order of the items, so neither the number of workers nor an interruption can be seen in the result.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from topklm.data.prepare_config import PrepareConfig
from topklm.data.prepare_item import (
    WORK,
    ItemResult,
    Job,
    read_result,
    skipped_path,
    too_many_skipped,
    write_json,
)
from topklm.data.prepare_run import run_items
from topklm.data.prepare_tokenizer import differences, obtain_tokenizer
from topklm.data.shards import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Manifest,
    ShardInfo,
    read_manifest,
    write_manifest,
)
from topklm.data.sources import SourceConfig, WorkItem
from topklm.data.split import split_rule
from topklm.data.tokenizers import Tokenizer, open_saved_tokenizer
from topklm.data.work_items import list_items
from topklm.errors import ConfigError, DataError

log = logging.getLogger("topklm.data")

_OURS = (MANIFEST, "tokenizer", "skipped.jsonl", *SPLITS, WORK)
"""Everything that a preparation writes into a source's directory, in the order in which it may be removed."""


def prepare(config: PrepareConfig) -> dict[str, Manifest]:
    """Prepare all sources of a configuration; {source: manifest}. Finished sources are left as they are.

    Raises `ConfigError` for a wrong configuration, or one that differs from what lies in `out_dir` already (with the
    differences), `DataError` for input that cannot be used: more bad documents than `max_skipped`, damaged files.
    """
    out = Path(config.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    with _only_one(out):
        for name in config.sources:
            _refuse_foreign(out / name)
            if config.overwrite:
                _remove(out / name)
        unfinished = [name for name in config.sources if not (out / name / MANIFEST).is_file()]
        items = {name: _list_items(config, name) for name in unfinished}
        tokenizer = obtain_tokenizer(config, items, out) if unfinished else _tokenizer_of_finished(config, out)
        return {
            name: _prepare_source(config, name, items[name], tokenizer)
            if name in items
            else _finished_source(config, name, tokenizer)
            for name in config.sources
        }


def _prepare_source(config: PrepareConfig, name: str, items: list[WorkItem], tokenizer: Tokenizer) -> Manifest:
    directory = Path(config.out_dir) / name
    request = _request(config, config.sources[name], tokenizer)
    _open_plan(directory, request, items, tokenizer)
    job = Job(
        directory=str(directory),
        source=name,
        config=config.sources[name],
        dtype="uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
        add_bos=config.add_bos,
        add_eos=config.add_eos,
        val_fraction=config.val_fraction,
        split_salt=config.split_salt,
        max_document_bytes=config.max_document_bytes,
        shard_tokens=config.shard_tokens,
        max_skipped=config.max_skipped,
    )
    results = {item.index: r for item in items if (r := read_result(job.work, item.index)) is not None}
    if results:
        log.info("%s: going on; %d of %d work items are finished", name, len(results), len(items))
    todo = [item for item in items if item.index not in results]
    with closing(run_items(job, todo, items, config.workers)) as new_results:
        for result in new_results:
            results[result.index] = result
            _check_skipped(job, results, final=False)
    _check_skipped(job, results, final=True)
    return _finish(job, request, tokenizer, [results[item.index] for item in items])


def _finish(job: Job, request: dict[str, Any], tokenizer: Tokenizer, results: list[ItemResult]) -> Manifest:
    """Everything but the manifest, then the manifest, then the traces of the work."""
    directory = Path(job.directory)
    shards = [shard for split in SPLITS for r in results for shard in r.shards if shard.split == split]
    skipped: dict[str, int] = {}
    with open(directory / "skipped.jsonl.tmp", "wb") as all_skipped:
        for result in results:
            for reason, n in result.skipped.items():
                skipped[reason] = skipped.get(reason, 0) + n
            with open(skipped_path(job.work, result.index), "rb") as part:
                shutil.copyfileobj(part, all_skipped)
    (directory / "skipped.jsonl.tmp").replace(directory / "skipped.jsonl")
    counts: dict[str, Any] = {split: _counts([s for s in shards if s.split == split]) for split in SPLITS}
    if not counts["train"]["documents"]:
        raise DataError(f"source {job.source}: no training document in {len(results)} work items; see {directory}")
    if job.val_fraction and not counts["val"]["documents"]:
        log.warning("%s: no document was held out; raise val_fraction for so few documents", job.source)
    tokenizer.save(directory / "tokenizer")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        source=job.source,
        dtype="uint16" if job.dtype == "uint16" else "uint32",
        counts=counts,
        skipped=dict(sorted(skipped.items())),
        shards=shards,
        **request,
    )
    write_manifest(directory, manifest)
    shutil.rmtree(job.work)
    return manifest


def _finished_source(config: PrepareConfig, name: str, tokenizer: Tokenizer) -> Manifest:
    directory = Path(config.out_dir) / name
    manifest = read_manifest(directory)
    _refuse_other(directory, _recorded_request(manifest), _request(config, config.sources[name], tokenizer))
    shutil.rmtree(directory / WORK, ignore_errors=True)  # left if a finished preparation was killed at its very end
    log.info("%s: is prepared already in %s; nothing to do", name, directory)
    return manifest


def _request(config: PrepareConfig, source: SourceConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything that decides the result, as it stands in the manifest."""
    return {
        "tokenizer": tokenizer.meta(),
        "add_bos": config.add_bos,
        "add_eos": config.add_eos,
        "split": split_rule(config.val_fraction, config.split_salt),
        "origin": {
            **{key: value for key, value in asdict(source).items() if value is not None},
            "max_document_bytes": config.max_document_bytes,
            "item_bytes": config.item_bytes,
            "shard_tokens": config.shard_tokens,
        },
    }


def _recorded_request(manifest: Manifest) -> dict[str, Any]:
    return {key: getattr(manifest, key) for key in ("tokenizer", "add_bos", "add_eos", "split", "origin")}


def _open_plan(directory: Path, request: dict[str, Any], items: list[WorkItem], tokenizer: Tokenizer) -> None:
    """Create the working directory with the plan, or see that the one that is there is the same."""
    work = directory / WORK
    plan: dict[str, Any] = {"request": request, "items": [asdict(item) for item in items]}
    path = work / "plan.json"
    if path.is_file():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            old_request, old_items = old["request"], old["items"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error!r}); start again with overwrite=true") from error
        _refuse_other(directory, old_request, request)
        if old_items != plan["items"]:
            raise ConfigError(
                f"the input of {directory} has changed since its preparation began: "
                f"{_changed_items(old_items, plan['items'])}. Put it back, or start again with overwrite=true"
            )
        for attempt in work.glob("attempt-*"):
            shutil.rmtree(attempt)
        return
    for folder in ("items", "skipped"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        (directory / split).mkdir(exist_ok=True)
    tokenizer.save(work / "tokenizer")
    write_json(path, plan)


def _changed_items(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    def files(items: list[dict[str, Any]]) -> set[tuple[str, int]]:
        return {(str(p.get("file", "dataset")), p.get("size", p.get("of"))) for i in items for p in i["parts"]}

    changed = sorted(files(old) ^ files(new))
    names = list(dict.fromkeys(name for name, _ in changed))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_skipped(job: Job, results: dict[int, ItemResult], *, final: bool) -> None:
    """A number is exceeded as soon as it is; a share can only be told when all documents were seen."""
    skipped = sum(n for r in results.values() for n in r.skipped.values())
    seen = sum(r.seen for r in results.values())
    limit = job.max_skipped
    if skipped > limit if isinstance(limit, int) else final and skipped > limit * seen:
        lists = [skipped_path(job.work, index) for index in sorted(results)]
        raise DataError(too_many_skipped(job, skipped, seen, lists))


def _counts(shards: list[ShardInfo]) -> dict[str, Any]:
    tokens, n_bytes = sum(s.n_tokens for s in shards), sum(s.n_bytes for s in shards)
    return {
        "documents": sum(s.n_documents for s in shards),
        "tokens": tokens,
        "bytes": n_bytes,
        "bytes_per_token": round(n_bytes / tokens, 4) if tokens else None,
    }


def _list_items(config: PrepareConfig, name: str) -> list[WorkItem]:
    try:
        return list_items(config.sources[name], config.item_bytes)
    except ConfigError as error:
        raise ConfigError([p.under(f"sources.{name}") for p in error.problems]) from error


def _tokenizer_of_finished(config: PrepareConfig, out: Path) -> Tokenizer:
    """The configured tokenizer if its file is there; else the saved one, because nothing will be prepared."""
    path, train = config.tokenizer.path, config.tokenizer.train
    if path is None or Path(path).exists():
        return obtain_tokenizer(config, {}, out)
    saved = open_saved_tokenizer(out / next(iter(config.sources)) / "tokenizer")
    vocab_size = train.vocab_size if train else saved.vocab_size
    if (saved.name, saved.vocab_size) != (config.tokenizer.name, vocab_size):
        raise ConfigError(
            f"{out} was prepared with a tokenizer {saved.name} of {saved.vocab_size} pieces, the configuration says "
            f"{config.tokenizer.name} of {vocab_size}; choose another out_dir, or replace it with overwrite=true"
        )
    return saved


def _refuse_other(directory: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    different = differences(old, new)
    if different:
        raise ConfigError(
            f"{directory} was prepared, or begun, with another configuration:\n"
            + "\n".join(f"  - {line}" for line in different)
            + "\nChoose another out_dir, go back to that configuration, or replace it with overwrite=true"
        )


def _refuse_foreign(directory: Path) -> None:
    known = (directory / MANIFEST).exists() or (directory / WORK).exists()
    if directory.exists() and not known and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not a preparation; choose another out_dir or name of the source")


def _remove(directory: Path) -> None:
    """Remove what a preparation wrote, nothing else. Interrupted, it still looks like one that is not finished."""
    if not directory.exists():
        return
    (directory / WORK).mkdir(exist_ok=True)
    (directory / WORK / "plan.json").unlink(missing_ok=True)
    for name in _OURS:
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Keep a second preparation out of the same directory; the lock ends with the process, however it ends."""
    import fcntl

    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another preparation is at work in {out}; wait for it or choose another out_dir"
            ) from error
        yield
