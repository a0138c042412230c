"""How good a model is: held-out text, and tasks of lm-evaluation-harness.

Names are imported when they are first used: a configuration needs neither the harness's side nor the validation's.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "EvalConfig": "config",
    "HarnessConfig": "harness_config",
    "HarnessOutcome": "harness",
    "Marks": "harness_marks",
    "Validation": "validation",
    "ValidationConfig": "config",
    "check_tasks": "tasks",
    "evals_directory": "results",
    "evaluation_provenance": "results",
    "marks_for": "harness_marks",
    "n_validation_batches": "validation",
    "run_harness": "harness",
    "validate": "validation",
    "validate_checkpoint": "validation",
    "windows_of": "validation",
    "write_results": "results",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"topklm.evaluate.{_HOME[name]}"), name)
    raise AttributeError(f"module 'topklm.evaluate' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
