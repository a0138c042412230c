"""Keys and passwords that got into a configuration, which is saved with runs, bundles and results, and shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from topklm.errors import Problem

_IN_ADDRESS = re.compile(r"\w+://[^/\s@:]*:[^/\s@]+@")
_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
_SHORTEST = 16
"""Shorter values may stand in a text by chance; keys are longer."""


def secret_problems(data: Any, path: str = "") -> Iterator[Problem]:
    """Texts below `data` with a password in an address, or with what an environment variable named as a key holds.

    The text itself is not shown.
    """
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from secret_problems(value, f"{path}.{key}" if path else str(key))
    elif isinstance(data, list | tuple):
        for i, value in enumerate(data):
            yield from secret_problems(value, f"{path}[{i}]")
    elif isinstance(data, str) and data:
        if _IN_ADDRESS.search(data):
            yield Problem(path, "has a password in its address, which would be saved; give the bare address")
        for name, value in os.environ.items():
            if _NAMES.search(name) and len(value) >= _SHORTEST and value in data:
                yield Problem(path, f"holds the value of {name}, which would be saved; programs read it from there")
