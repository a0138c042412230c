"""Tasks of lm-evaluation-harness, its own and local ones, with their data: loaded before any model is.

What cannot be loaded is named with how to get it, and the other tasks go on. Imports lm_eval where it is used.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topklm.errors import ConfigError, Problem
from topklm.evaluate.harness_config import HarnessConfig, task_name
from topklm.evaluate.tasks_local import local_configs, stands_alone
from topklm.optional import require

log = logging.getLogger("topklm.evaluate")

EXTRA = "topklm[eval]"


@dataclass(frozen=True)
class LoadedTasks:
    """What `HarnessConfig.tasks` names. Made by `load_tasks`; holds objects of lm_eval."""

    found: dict[str, dict[str, Any]]
    """By the name that was asked for: what `TaskManager.load` gives, {"tasks": {name: Task}, "groups": ...}. A group or
    a tag has several tasks."""
    failed: dict[str, str]
    """By the name that was asked for: why it cannot run, and what to do."""
    hashes: dict[str, str]
    """sha256 (hex) of every task: its documents and how they become requests."""

    def only(self, names: Iterable[str]) -> LoadedTasks:
        """The same with fewer of those that were found."""
        return LoadedTasks({name: self.found[name] for name in names}, self.failed, self.hashes)


def check_tasks(config: HarnessConfig, tasks_dir: str | None = None) -> dict[str, str]:
    """{task: why it cannot run and what to do}, without a model. Raises `ConfigError` as `load_tasks` does."""
    return load_tasks(config, tasks_dir).failed


def load_tasks(config: HarnessConfig, tasks_dir: str | None = None) -> LoadedTasks:
    """Load all tasks and their data sets.

    `tasks_dir`: a directory of further task YAMLs, also in subdirectories, which come before those of the harness.
    Raises `ConfigError` with all problems: a missing package, unknown names, a directory without usable YAMLs.
    """
    require("lm_eval.api.task", EXTRA)
    local = {} if tasks_dir is None else local_configs(Path(tasks_dir))
    manager = _manager(config, local, tasks_dir)
    unknown = [name for name in map(task_name, config.tasks) if name not in manager.task_index]
    if unknown:
        raise ConfigError([_unknown(name, manager.all_tasks) for name in unknown])
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for task in config.tasks:
            name = task_name(task)
            try:
                found[name] = manager.load([_with_settings(task, manager)])
            except ConfigError:
                raise
            except Exception as error:  # data sets raise whatever their libraries and their servers do
                failed[name] = _reason(manager.task_index[name].cfg or {}, error)
                log.warning("task %s cannot run: %s", name, failed[name])
                if _is_unreachable(error):  # asking again takes half a minute for every task
                    stack.enter_context(_offline())
    tasks = {name: task for loaded in found.values() for name, task in loaded["tasks"].items()}
    return LoadedTasks(found, failed, {name: _hash(task) for name, task in tasks.items()})


def _hash(task: Any) -> str:
    settings = {k: v for k, v in task.dump_config().items() if k not in ("metadata", "dataset_kwargs")}
    digest = hashlib.sha256(json.dumps([task.VERSION, settings], sort_keys=True, default=str).encode())
    for document in task.eval_docs:
        digest.update(json.dumps(document, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _manager(config: HarnessConfig, local: dict[str, dict[str, Any]], tasks_dir: str | None) -> Any:
    tasks = require("lm_eval.tasks", EXTRA)
    # The harness reads its 12,000 YAMLs to find one task: 5 s that local tasks do not need.
    sufficient = all(stands_alone(task_name(task), local) for task in config.tasks)
    manager = tasks.TaskManager(include_path=tasks_dir, include_defaults=not sufficient)
    for name, content in local.items():
        entry = manager.task_index.get(name)
        if entry is not None:  # the configuration with its paths resolved takes the place of the file
            entry.cfg, entry.yaml_path = content, None
    return manager


def _with_settings(task: Any, manager: Any) -> Any:
    """What to load: a name, or the whole configuration of a task with some of its settings replaced."""
    if not isinstance(task, dict):
        return task
    entry = manager.task_index[task["task"]]
    if not isinstance((entry.cfg or {}).get("task"), str):
        raise ConfigError(f"harness.tasks: {task['task']} is a group or a tag; settings can be given to a task only")
    load_yaml = require("lm_eval.tasks._yaml_loader", EXTRA).load_yaml
    return (entry.cfg if entry.yaml_path is None else load_yaml(entry.yaml_path)) | task


def _unknown(name: str, known: Sequence[str]) -> Problem:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; local tasks need eval.tasks_dir"
    return Problem("harness.tasks", f"there is no task {name}{hint}")


def _reason(config: dict[str, Any], error: Exception) -> str:
    path, name = config.get("dataset_path"), config.get("dataset_name")
    said = " ".join(str(error).split())[:300]
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if files is not None:
        return f"its data cannot be read ({type(error).__name__}: {said}); data_files: {files}"
    if isinstance(error, ImportError):
        return f"it needs a package that is not installed ({said})"
    if isinstance(path, str) and isinstance(error, OSError):
        call = f"load_dataset({', '.join(repr(part) for part in (path, name) if part)})"
        return (
            f"its data set {path} is not on this machine and could not be fetched ({type(error).__name__}: {said}); on "
            f'one with access to the hub run python -c "from datasets import load_dataset; {call}", copy its '
            "~/.cache/huggingface here (or set HF_HOME to the copy), and set HF_HUB_OFFLINE=1"
        )
    return f"{type(error).__name__}: {said}"


def _is_unreachable(error: Exception) -> bool:
    return isinstance(error, ConnectionError) and "Offline" not in str(error)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Data sets come from the cache only, as with HF_HUB_OFFLINE=1."""
    places = [(require(module, EXTRA), "HF_HUB_OFFLINE") for module in ("datasets.config", "huggingface_hub.constants")]
    before = [getattr(module, name) for module, name in places]
    if not all(before):
        log.warning("the hub cannot be reached; what is not in the cache is left out")
    for module, name in places:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def chance_level(task: Any, documents: Sequence[dict[str, Any]]) -> float | None:
    """Accuracy of guessing on these documents; None where there is no such level.

    Multiple choice: the mean of (right answers / answers). A last word (`loglikelihood`): 0, one of all words.
    """
    if task.OUTPUT_TYPE == "loglikelihood":
        return 0.0
    if task.OUTPUT_TYPE != "multiple_choice" or not documents:
        return None
    shares = []
    for document in documents:
        right = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
        n_right = len(set(right)) if isinstance(right, list) else 1
        shares.append(n_right / len(task.doc_to_choice(document)))
    return sum(shares) / len(shares)
