"""Our models as others read them: Hugging Face, Meta Lingua; and whether both sides compute the same.

Names are imported when they are first used: the settings of an export need no torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "HuggingFaceConfig": "config",
    "Parity": "parity",
    "ParityConfig": "config",
    "Source": "source",
    "check_parity": "check",
    "export_consolidated": "consolidated",
    "export_huggingface": "huggingface",
    "export_lingua": "lingua",
    "open_source": "source",
    "register": "auto_classes",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"topklm.export.{_HOME[name]}"), name)
    raise AttributeError(f"module 'topklm.export' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
