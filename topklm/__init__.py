"""topklm: train TopK language models and see what their neurons mean.

Names are imported when they are first used, so that `import topklm` costs next to nothing beyond torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "TopKConfig": "topklm.sparsity",
    "sparsify": "topklm.sparsity",
    "set_alpha": "topklm.sparsity",
    "load_model": "topklm.checkpoint",
}

__all__ = ["TopKConfig", "load_model", "set_alpha", "sparsify"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'topklm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
