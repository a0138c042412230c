"""What of a model is evaluated during training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from topklm.errors import Problem
from topklm.evaluate.harness_config import HarnessConfig


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Perplexity on the held-out shards."""

    unused_keys: ClassVar[dict[str, str]] = {
        "max_steps": "it would depend on the number of ranks; use max_tokens",
        "use_val_from_train_src": "the held-out part of the training sources is what is used",
        "root_dir": "the held-out part of the training sources is what is used",
        "sources": "the held-out part of the training sources is what is used",
    }

    contexts: list[int] = field(default_factory=list)
    """Tokens in a window; data.seq_len if empty. Each makes figures that are named after it: val/ppl@2048."""
    stride: int | None = None
    """Tokens that a window scores beyond the one before it, so that each but the first ones is predicted from at least
    context - stride + 1 tokens; null: the context, windows that do not overlap. val/ppl@2048-stride512."""
    documents: bool = False
    """Window each document by itself, nothing being predicted from the one before; false: in one text, as in
    training. val/ppl@2048-documents."""
    batch_size: int | None = None
    """Windows per rank and forward pass; data.batch_size if null. Does not change the result."""
    max_tokens: int | None = None
    """Score about so many tokens at most, in windows spaced evenly over each source (at least one); null: all."""

    def problems(self) -> Iterator[Problem]:
        for context in self.contexts:
            if context < 1:
                yield Problem("contexts", f"{context} is below 1")
            elif self.stride is not None and self.stride > context:
                yield Problem("stride", f"{self.stride} is more than the context {context}: tokens would be left out")
        for name in ("batch_size", "max_tokens", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield Problem(name, f"{value} is below 1")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is evaluated during training, and how often."""

    unused_keys: ClassVar[dict[str, str]] = {
        "generator": "tasks say how they generate; use harness.gen_kwargs and harness.batch_tokens",
        **dict.fromkeys(
            ("name", "dump_dir", "metric_log_dir", "ckpt_dir", "global_step"),
            "an evaluation during training is of its run and step, and written to dump_dir/evals",
        ),
        "wandb": "logging.wandb is where the run's figures go",
        "dataset_dir": "Lingua has no such key either, though one of its files does; see tasks_dir",
    }

    every: int | None = None
    """Evaluate every so many steps, and at the end; 0: only at the end; null: as checkpoint.eval.every says, as in
    Lingua."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Perplexity on the held-out shards."""
    harness: HarnessConfig | None = None
    """Tasks of lm-evaluation-harness; null: none."""
    tasks_dir: str | None = None
    """Directory of task files of one's own, with local data; they come before the harness's of the same name."""
    context: int = 256
    """Tokens that the model sees of a task's request at most; the paper's number."""

    def problems(self) -> Iterator[Problem]:
        if self.context < 2:
            yield Problem("context", f"{self.context} is below 2, which leaves no room for a prompt")
        if self.every is not None and self.every < 0:
            yield Problem("every", f"{self.every} is negative; 0 means only at the end")
