"""Looking before preparing: what there is to read, whether it can be, and whether it is still the same."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from topklm.data.prepare_config import PrepareConfig
from topklm.data.prepare_item import WORK, write_json
from topklm.data.prepare_tokenizer import differences, existing_tokenizer
from topklm.data.shards import MANIFEST, SPLITS, Manifest
from topklm.data.sources import SourceConfig, WorkItem
from topklm.data.tokenizers import Tokenizer
from topklm.data.work_items import list_inputs, list_items
from topklm.errors import ConfigError, DataError, Problem

log = logging.getLogger("topklm.data")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is there before anything is written."""

    tokenizer: Tokenizer | None
    """None: it has to be trained first."""
    items: dict[str, list[WorkItem]] = field(default_factory=dict)
    """Work items of each source that is to be prepared, in the order of the configuration."""
    inputs: dict[str, dict[str, int]] = field(default_factory=dict)
    """Name and size of each input file of these sources; without hub datasets."""


def survey(config: PrepareConfig, names: list[str]) -> Survey:
    """Look at the tokenizer, at every directory to be written and at the sources `names`; hub datasets last.

    Raises `ConfigError`, or `DataError` where only files are broken, with everything that is wrong.
    """
    errors: list[ConfigError | DataError] = []

    @contextmanager
    def under(key: str) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            errors.append(ConfigError([problem.under(key) for problem in error.problems]))
        except DataError as error:
            errors.append(error)

    tokenizer = None
    items: dict[str, list[WorkItem]] = {}
    inputs: dict[str, dict[str, int]] = {}
    with under(""):
        tokenizer = existing_tokenizer(config)
    for name in config.sources:
        with under(f"sources.{name}"):
            _refuse_foreign(Path(config.out_dir) / name)
    for name in sorted(names, key=lambda name: config.sources[name].kind == "hf"):
        with under(f"sources.{name}"):
            items[name] = list_items(config.sources[name], config.item_bytes)
            inputs[name] = list_inputs(config.sources[name])
            if not items[name]:
                empty = _first(sorted(inputs[name]))
                raise DataError(f"source {name}: its files are empty ({empty}); leave it out, or give documents")
    _raise_all(errors)
    return Survey(
        tokenizer=tokenizer,
        items={name: items[name] for name in names},
        inputs={name: inputs[name] for name in names},
    )


def open_plan(directory: Path, request: dict[str, Any], items: list[WorkItem], tokenizer: Tokenizer) -> None:
    """Create the working directory with the plan, or see that the one that is there is the same.

    Raises `ConfigError` with the differences if configuration or input have changed since.
    """
    work = directory / WORK
    plan: dict[str, Any] = {"request": request, "items": [asdict(item) for item in items]}
    path = work / "plan.json"
    if path.is_file():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            old_request, old_items = old["request"], old["items"]
            changed = _changed_files(old_items, plan["items"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged ({error!r}); start again with overwrite=true") from error
        refuse_other(directory, old_request, request)
        if old_items != plan["items"]:
            raise ConfigError(
                f"the input of {directory} has changed (size or time of modification) since its preparation began: "
                f"{changed}. Put it back, or start again with overwrite=true"
            )
        for attempt in work.glob("attempt-*"):
            shutil.rmtree(attempt)
    for folder in (work / "items", work / "skipped", *(directory / split for split in SPLITS)):
        folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(work / "tokenizer")  # again if it is there: the plan says it is the same, the file may be damaged
    if not path.is_file():
        write_json(path, plan)


def tell_changed_inputs(directory: Path, source: SourceConfig, manifest: Manifest) -> None:
    """Warn if the files of a finished source are others now. Names and sizes count: a copy has other times."""
    old = manifest.origin.get("inputs")
    try:
        new = list_inputs(source)
    except (ConfigError, DataError):  # it is not there any more, nor is it needed
        return
    if not isinstance(old, dict) or old == new:
        return
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            lines.append(f"{name} is gone")
        elif name not in old:
            lines.append(f"{name} is new")
        elif old[name] != new[name]:
            lines.append(f"{name} had {old[name]} bytes, has {new[name]}")
    log.warning(
        "the input of %s has changed since it was prepared: %s. It holds what was read; overwrite=true replaces it",
        directory,
        _first(lines),
    )


def refuse_other(directory: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise `ConfigError` with the differences between two requests, if there are any."""
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


def _raise_all(errors: list[ConfigError | DataError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors and all(isinstance(error, DataError) for error in errors):
        raise DataError(f"{len(errors)} problems with the input:\n" + "\n".join(f"  - {error}" for error in errors))
    if errors:
        problems = [e.problems if isinstance(e, ConfigError) else [Problem("", str(e))] for e in errors]
        raise ConfigError([problem for some in problems for problem in some])


def _changed_files(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    def files(items: list[dict[str, Any]]) -> set[tuple[str, Any, Any]]:
        parts = (part for item in items for part in item["parts"])
        return {(str(p.get("file", "dataset")), p.get("size", p.get("of")), p.get("mtime_ns")) for p in parts}

    return _first(sorted({name for name, *_ in files(old) ^ files(new)}))


def _first(lines: list[str], n: int = 5) -> str:
    return ", ".join(lines[:n]) + (f" and {len(lines) - n} more" if len(lines) > n else "")
