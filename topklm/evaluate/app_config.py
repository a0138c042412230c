"""The configuration of `apps.eval`: which checkpoints are evaluated, and on what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from topklm.errors import Problem
from topklm.evaluate.config import ValidationConfig
from topklm.evaluate.harness_config import HarnessConfig


@dataclass(frozen=True, kw_only=True)
class EvalAppConfig:
    """An evaluation of one or more checkpoints."""

    unused_keys: ClassVar[dict[str, str]] = {
        "name": "an evaluation is named by its checkpoint",
        "metric_log_dir": "only an evaluation during training writes to the run's metrics",
        "generator": "tasks say how they generate; harness.gen_kwargs and harness.batch_tokens replace it",
        "wandb": "only an evaluation during training writes to wandb",
        "global_step": "a checkpoint knows its step",
    }

    ckpt: str | None = None
    """A run (its newest good checkpoint), a checkpoint directory, a consolidated file, or a Hugging Face Llama."""
    ckpts: list[str] = field(default_factory=list)
    """Further ones, evaluated one after the other in the same way; the tasks are loaded once."""
    ckpt_dir: str | None = None
    """Meta Lingua's name of ckpt."""
    out: str | None = None
    """Directory of the results; null: evals/STEP of the run, or evals/ beside the checkpoint's file. With several
    checkpoints, one directory each in it, named by where their paths differ."""
    dump_dir: str | None = None
    """Meta Lingua's name of out."""
    overwrite: bool = False
    """Evaluate again what is finished already. Without it, only what is new or was interrupted."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU of its own for each rank, where there is one."""
    dtype: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Dtype of weights and compute. fp32 by default on a GPU too: in bf16 a TopK model selects other entries with every
    batch shape."""
    alpha: float | None = None
    """1 dense ... 0 TopK; null: the checkpoint's own."""
    context: int = 256
    """Tokens that the model sees of a request at most; the paper's number. Also the validation's, where that names no
    contexts."""
    bos: bool | None = None
    """Whether BOS stands before every prompt; null: if it stood before the documents that the model was trained on."""
    harness: HarnessConfig | None = None
    """Tasks of lm-evaluation-harness; null: none."""
    tasks_dir: str | None = None
    """Directory of task YAMLs of one's own, whose data files (JSONL, parquet) are relative to them."""
    validation: ValidationConfig | None = None
    """Perplexity on held-out shards; null: none."""
    data_dir: str | None = None
    """Prepared data whose held-out part the validation scores; null: what the run was trained on."""
    sources: list[str] = field(default_factory=list)
    """The sources in it; all if empty, or those of the run where data_dir is null."""
    timeout_minutes: float = 120.0
    """Under torchrun, how long a rank waits for another."""

    @property
    def checkpoints(self) -> list[str]:
        """All of them, in order."""
        return [path for path in (self.ckpt, self.ckpt_dir, *self.ckpts) if path]

    @property
    def results_dir(self) -> str | None:
        """`out`, by whichever name it is given."""
        return self.out or self.dump_dir

    def problems(self) -> Iterator[Problem]:
        for ours, linguas in (("ckpt", "ckpt_dir"), ("out", "dump_dir")):
            if getattr(self, ours) and getattr(self, linguas):
                yield Problem(linguas, f"is {ours} here; give one only")
        if not self.checkpoints:
            yield Problem("ckpt", "is missing: a run or a checkpoint (several: ckpts=[A,B])")
        for path in sorted({path for path in self.checkpoints if self.checkpoints.count(path) > 1}):
            yield Problem("ckpts", f"{path} is named twice; leave one out")
        if self.harness is None and self.validation is None:
            yield Problem(
                "harness", "neither tasks nor a validation are asked for; give harness={tasks: [...]} or a file"
            )
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            yield Problem("alpha", f"{self.alpha} is not in [0, 1]: 1 dense ... 0 TopK")
        if self.context < 2:
            yield Problem("context", f"{self.context} is below 2, which leaves no room for a prompt")
        if self.harness is not None and not self.harness.tasks:
            yield Problem("harness.tasks", "is empty; harness=null for a validation only")
        if self.timeout_minutes <= 0:
            yield Problem("timeout_minutes", f"{self.timeout_minutes} is not above 0")
