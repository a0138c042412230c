"""Which tasks of lm-evaluation-harness a checkpoint is scored on, and how. Meta Lingua's names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from topklm.errors import Problem

_PLAIN = "prompts are the tasks' own: a model of this project has no chat template and no instructions"


@dataclass(frozen=True, kw_only=True)
class HarnessConfig:
    """Tasks of lm-evaluation-harness 0.4.13 (pip install 'topklm[eval]')."""

    unused_keys: ClassVar[dict[str, str]] = {
        "device": "it is the evaluation's own device",
        "check_integrity": "it runs the harness's own tests, which its package does not hold",
        "write_out": "the per-sample log holds every prompt",
        "verbosity": "set the level of the logger lm_eval",
        "delete_requests_cache": "use rewrite_requests_cache",
    }
    only_values: ClassVar[dict[str, tuple[Any, str]]] = {
        "system_instruction": (None, _PLAIN),
        "apply_chat_template": (False, _PLAIN),
        "fewshot_as_multiturn": (False, _PLAIN),
        "predict_only": (False, "tasks are scored; the per-sample log holds every answer"),
    }

    tasks: list[Any] = field(default_factory=list)
    """Names of tasks, groups or tags, or {task: NAME, ...} with settings that replace the task's own; a task in
    eval.tasks_dir comes before the harness's of that name."""
    num_fewshot: int | None = None
    """Solved examples before each prompt; null: the task's own number, mostly 0."""
    limit: int | float | None = None
    """Only the first so many documents of each task, or this share of them if below 1. For trying things out."""
    batch_tokens: int | None = None
    """Tokens in a forward pass, padding included; null: by device, halved where the memory does not suffice. Changes
    speed, not the result. Ours."""
    use_cache: str | None = None
    """Path prefix of a database of answers, one per checkpoint and setting: what it holds is not computed again."""
    cache_requests: bool = False
    """Keep the prompts that the harness builds of the documents, in its own cache."""
    rewrite_requests_cache: bool = False
    """Build those prompts anew."""
    bootstrap_iters: int = 1000
    """Resamples for the standard errors that have no closed form (LAMBADA's perplexity); 0: no standard errors. The
    harness takes 100,000, which are minutes and two more digits of an error estimate."""
    log_samples: bool = True
    """Keep what was asked and answered, document by document. Comparing twins needs it."""
    gen_kwargs: dict[str, Any] | str | None = None
    """Settings for tasks that generate: temperature, top_p, top_k, max_gen_toks, until, ...; over the task's own.
    Text that is drawn depends on the number of ranks, greedy text does not."""
    random_seed: int = 0
    """Seed of Python's random numbers, at the start of every task."""
    numpy_random_seed: int = 1234
    """Seed of NumPy's."""
    torch_random_seed: int = 1234
    """Seed of torch's; generation that samples begins from it."""
    fewshot_random_seed: int = 1234
    """Seed of the choice of solved examples."""

    def problems(self) -> Iterator[Problem]:
        for i, task in enumerate(self.tasks):
            if not (isinstance(task, str) or (isinstance(task, dict) and isinstance(task.get("task"), str))):
                yield Problem(f"tasks[{i}]", f"{task!r} is neither the name of a task nor {{task: NAME, ...}}")
        if len(set(map(task_name, self.tasks))) < len(self.tasks):
            yield Problem("tasks", "names a task twice")
        for name in ("num_fewshot", "bootstrap_iters"):
            if (getattr(self, name) or 0) < 0:
                yield Problem(name, f"{getattr(self, name)} is negative")
        if self.limit is not None and not self.limit > 0:
            yield Problem("limit", f"{self.limit} is not above 0; null for all documents")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            yield Problem("batch_tokens", f"{self.batch_tokens} is below 1")


def task_name(task: Any) -> str:
    """The name in an entry of `tasks`."""
    return str(task["task"]) if isinstance(task, dict) and "task" in task else str(task)
