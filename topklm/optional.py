"""Importing packages that not every installation has."""

from __future__ import annotations

import importlib
from typing import Any

from topklm.errors import ConfigError


def require(module: str, install: str) -> Any:
    """Import `module`; if it is missing, a `ConfigError` that says what to `pip install`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"the package {module} is needed: pip install '{install}' ({error})") from error
