"""Preparation: documents -> tokens -> shards, in parallel, resumable, and the same whatever happens on the way.

A source is divided into work items (`work_items`). Each finished item leaves its shards and a record; a killed
preparation goes on with the items that have no record. The manifest is written last, from the records in the
order of the items, so neither the number of workers nor an interruption can be seen in the result.
"""

from __future__ import annotations

import errno
import logging
import os
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
)
from topklm.data.prepare_plan import Survey, open_plan, refuse_other, survey, tell_changed_inputs
from topklm.data.prepare_run import run_items
from topklm.data.prepare_tokenizer import existing_tokenizer, train_tokenizer
from topklm.data.shards import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Manifest,
    ShardInfo,
    read_manifest,
    write_manifest,
)
from topklm.data.sources import SourceConfig
from topklm.data.split import BY_FILES, split_rule
from topklm.data.tokenizers import Tokenizer, open_saved_tokenizer
from topklm.data.work_items import split_by_files
from topklm.errors import ConfigError, DataError

log = logging.getLogger("topklm.data")

_OURS = (MANIFEST, "tokenizer", "skipped.jsonl", *SPLITS, WORK)
"""Everything that a preparation writes into a source's directory, in the order in which it may be removed."""


def prepare(config: PrepareConfig) -> dict[str, Manifest]:
    """Prepare all sources of a configuration; {source: manifest}. Finished sources are left as they are.

    Everything is looked at before anything is written or, with `overwrite`, thrown away. Raises `ConfigError` for a
    wrong configuration, or one that differs from what lies in `out_dir` already (with the differences), `DataError`
    for input that cannot be used (more bad documents than `max_skipped`, damaged files) and for a full disk.
    """
    out = Path(config.out_dir)
    try:
        with _only_one(out):
            return _prepare_all(config, out)
    except OSError as error:
        raise _explained(error, out) from error


def _prepare_all(config: PrepareConfig, out: Path) -> dict[str, Manifest]:
    names = list(config.sources)
    unfinished = [name for name in names if config.overwrite or not (out / name / MANIFEST).is_file()]
    if unfinished:
        found = survey(config, unfinished)
        tokenizer = found.tokenizer or train_tokenizer(config, found.items)
    else:
        found, tokenizer = Survey(tokenizer=None), _tokenizer_of_finished(config, out)
    manifests = {name: _finished_source(config, name, tokenizer) for name in names if name not in unfinished}
    for name in unfinished if config.overwrite else ():
        _remove(out / name)
    for name in unfinished:
        manifests[name] = _prepare_source(config, name, found, tokenizer)
    return {name: manifests[name] for name in names}


def _prepare_source(config: PrepareConfig, name: str, found: Survey, tokenizer: Tokenizer) -> Manifest:
    directory, items = Path(config.out_dir) / name, found.items[name]
    request = _request(config, config.sources[name], tokenizer, by_files=split_by_files(items))
    open_plan(directory, request, items, tokenizer)
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
    results = {item.index: r for item in items if (r := read_result(job, item.index)) is not None}
    if results:
        log.info("%s: going on; %d of %d work items are finished", name, len(results), len(items))
    todo = [item for item in items if item.index not in results]
    with closing(run_items(job, todo, items, config.workers)) as new_results:
        for result in new_results:
            results[result.index] = result
            _check_skipped(job, results, final=False)
    _check_skipped(job, results, final=True)
    if found.inputs[name]:
        request["origin"]["inputs"] = found.inputs[name]
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
        skipped_ones = ", ".join(f"{n:,} {reason}" for reason, n in skipped.items()) or "none"
        raise DataError(
            f"source {job.source}: no training document is left; held out: {counts['val']['documents']:,} "
            f"(val_fraction {job.val_fraction}), skipped: {skipped_ones}; lower val_fraction, or give more documents"
        )
    if request["split"] == BY_FILES and not counts["val"]["documents"]:
        log.warning("%s: its *.val.jsonl hold no document, so none was held out", job.source)
    elif job.val_fraction and not counts["val"]["documents"]:
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
    request = _request(config, config.sources[name], tokenizer, by_files=manifest.split == BY_FILES)
    refuse_other(directory, _recorded_request(manifest), request)
    tell_changed_inputs(directory, config.sources[name], manifest)
    shutil.rmtree(directory / WORK, ignore_errors=True)  # left if a finished preparation was killed at its very end
    log.info("%s: is prepared already in %s; nothing to do", name, directory)
    return manifest


def _request(config: PrepareConfig, source: SourceConfig, tokenizer: Tokenizer, *, by_files: bool) -> dict[str, Any]:
    """Everything that decides the result, as it stands in the manifest. `by_files`: the source's files say what is
    held out."""
    return {
        "tokenizer": tokenizer.meta(),
        "add_bos": config.add_bos,
        "add_eos": config.add_eos,
        "split": BY_FILES if by_files else split_rule(config.val_fraction, config.split_salt),
        "origin": {
            **{key: value for key, value in asdict(source).items() if value is not None},
            "max_document_bytes": config.max_document_bytes,
            "item_bytes": config.item_bytes,
            "shard_tokens": config.shard_tokens,
        },
    }


def _recorded_request(manifest: Manifest) -> dict[str, Any]:
    request = {key: getattr(manifest, key) for key in ("tokenizer", "add_bos", "add_eos", "split")}
    return {**request, "origin": {key: value for key, value in manifest.origin.items() if key != "inputs"}}


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


def _tokenizer_of_finished(config: PrepareConfig, out: Path) -> Tokenizer:
    """The configured tokenizer if its file is there; else the saved one, because nothing will be prepared."""
    path, train = config.tokenizer.path, config.tokenizer.train
    if (path is None or Path(path).exists()) and (tokenizer := existing_tokenizer(config)) is not None:
        return tokenizer
    saved = open_saved_tokenizer(out / next(iter(config.sources)) / "tokenizer")
    vocab_size = train.vocab_size if train else saved.vocab_size
    if (saved.name, saved.vocab_size) != (config.tokenizer.name, vocab_size):
        raise ConfigError(
            f"{out} was prepared with a tokenizer {saved.name} of {saved.vocab_size} pieces, the configuration says "
            f"{config.tokenizer.name} of {vocab_size}; choose another out_dir, or replace it with overwrite=true"
        )
    return saved


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


def _explained(error: OSError, out: Path) -> ConfigError | DataError:
    """What the system refused, as an error of ours: a wrong place is the configuration's, the rest is not."""
    where = f"{error.filename or out}: {error.strerror or error}"
    wrong_place = isinstance(error, PermissionError | NotADirectoryError | IsADirectoryError | FileExistsError)
    if wrong_place or error.errno == errno.EROFS:
        return ConfigError(f"the preparation in {out} has no access to {where}; choose another place or allow it")
    return DataError(
        f"the preparation in {out} cannot go on: {where}. Mend that and run the same command again; "
        "finished work is kept"
    )


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Keep a second preparation out of the same directory; the lock ends with the process, however it ends.

    A preparation that was refused before it began leaves no trace: neither the lock's file nor `out`.
    """
    import fcntl

    new = [path for path in (out / ".lock", out, *out.parents) if not path.exists()]
    before = set(out.iterdir()) if out.is_dir() else set()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "w")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ConfigError(f"out_dir: {out} cannot be written ({error.strerror}); choose another place") from error
    with lock:
        busy = f"another preparation is at work in {out}; wait for it or choose another out_dir"
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(busy) from error
        if not os.fstat(lock.fileno()).st_nlink:  # one that was refused has just removed it
            raise ConfigError(busy)
        try:
            yield
        except BaseException:
            if set(out.iterdir()) - {out / ".lock"} == before:
                for path in new:
                    path.rmdir() if path.is_dir() else path.unlink()
            raise
