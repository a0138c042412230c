"""Task YAMLs of a user's directory: all of them must be readable, and their data files are relative to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topklm.errors import ConfigError, Problem
from topklm.optional import require


def local_configs(directory: Path) -> dict[str, dict[str, Any]]:
    """{name of task or group: its whole configuration, with the paths of its data files made absolute}.

    Raises `ConfigError` with all problems: no such directory, no YAML in it, unreadable YAMLs, two of one name.
    lm_eval itself skips a broken YAML without a word.
    """
    load_yaml = require("lm_eval.tasks._yaml_loader", "topklm[eval]").load_yaml
    if not directory.is_dir():
        raise ConfigError([Problem("tasks_dir", f"{directory} is no directory")])
    files = sorted(path for path in directory.rglob("*.yaml") if not path.name.startswith("_"))
    if not files:
        raise ConfigError([Problem("tasks_dir", f"{directory} holds no task (*.yaml)")])
    found: dict[str, dict[str, Any]] = {}
    origin: dict[str, Path] = {}
    problems = []
    for path in files:
        try:
            content = load_yaml(path)
            name = content["group"] if isinstance(content.get("group"), str) else content.get("task")
            if not isinstance(name, str):
                raise ValueError("it names no task and no group")
        except Exception as error:  # the YAML may import a Python file beside it, which may raise anything
            problems.append(Problem("tasks_dir", f"{path} is no task: {' '.join(str(error).split())}"))
            continue
        if name in found:
            problems.append(Problem("tasks_dir", f"{path} and {origin[name]} are both called {name}"))
        found[name], origin[name] = _resolved(content, path.parent), path
    if problems:
        raise ConfigError(problems)
    return found


def stands_alone(name: str, local: dict[str, dict[str, Any]]) -> bool:
    """Whether a task, or a group with all that is in it, needs nothing but local YAMLs."""
    content = local.get(name)
    if content is None:
        return False
    if not isinstance(content.get("group"), str):
        return True
    members = content.get("task") or []
    names = [m if isinstance(m, str) else m.get("task") or m.get("group") for m in members]
    return all(isinstance(member, str) and stands_alone(member, local) for member in names)


def _resolved(content: dict[str, Any], directory: Path) -> dict[str, Any]:
    settings = content.get("dataset_kwargs")
    if not isinstance(settings, dict):  # a group hands on all it has to its tasks, so nothing may be added
        return content
    paths = {k: _absolute(settings[k], directory) for k in ("data_files", "data_dir") if k in settings}
    return content | {"dataset_kwargs": settings | paths}


def _absolute(value: Any, directory: Path) -> Any:
    """The same files (a pattern, a list, a mapping of splits), relative to the YAML."""
    if isinstance(value, dict):
        return {key: _absolute(item, directory) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item, directory) for item in value]
    return value if "://" in str(value) else str((directory / str(value)).resolve())
