"""Is a checkpoint complete and undamaged? Names, sizes and SHA-256 of its files are kept in `files.json`."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from topklm.errors import CheckpointError

FILES = "files.json"
REQUIRED = (".metadata", "params.json", "train_state_00000.json")


def digest(path: Path) -> dict[str, int | str]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_json(path: Path, content: Any) -> None:
    """Write and make durable: the rename of a checkpoint must not become visible before its contents."""
    with path.open("w") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON file that holds an object. Raises `CheckpointError` that ends in `remedy`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; {remedy}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, no object of settings; {remedy}")
    return content


def make_durable(path: Path) -> None:
    """Wait until a file's contents, or the names in a directory, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoint_hash(directory: Path) -> str:
    """One SHA-256 that stands for a checkpoint's contents: the hash of its files' hashes."""
    return hashlib.sha256((directory / FILES).read_bytes()).hexdigest()


def defects(directory: Path) -> list[str]:
    """What is wrong with a checkpoint of ours; an empty list if it can be relied on."""
    try:
        recorded = json.loads((directory / FILES).read_text())
        expected = {name: {"size": file["size"], "sha256": file["sha256"]} for name, file in recorded.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        return [f"{FILES} cannot be read ({error})"]
    found = [f"{name} is not recorded in {FILES}" for name in REQUIRED if name not in expected]
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        checks = pool.map(lambda item: _defect(directory, *item), expected.items())
        return found + [defect for defect in checks if defect]


def _defect(directory: Path, name: str, recorded: dict[str, int | str]) -> str | None:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        return f"{name} is not in this directory"
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != recorded["size"]:
        return f"{path.name} has {path.stat().st_size} bytes instead of {recorded['size']}"
    if digest(path) != recorded:
        return f"{path.name} is damaged (its SHA-256 differs)"
    return None
