"""The configuration of a training run: Meta Lingua's schema and one new section, `topk`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from topklm.checkpoint import CheckpointConfig
from topklm.data import DataConfig
from topklm.errors import Problem
from topklm.evaluate import EvalConfig
from topklm.model import ModelConfig
from topklm.sparsity import TopKConfig
from topklm.train.metrics import LoggingConfig
from topklm.train.optim import OptimConfig
from topklm.train.parallel import DistributedConfig
from topklm.train.profiling import ProfilingConfig
from topklm.train.spikes import SpikesConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. A dense twin is the same file with `topk=null`."""

    unused_keys: ClassVar[dict[str, str]] = {
        "gc_collect_freq": "Python's own garbage collection is kept",
        "probe_freq": "statistics of activations come from checkpoints, not from a probe in training",
        "async_eval_gpus": "evaluation runs in the job's own process group",
        "env": "set environment variables where the job is started",
    }

    name: str = "topklm"
    """Name of the run."""
    dump_dir: str = ""
    """Where everything of the run goes; starting again with the same dump_dir resumes."""
    seed: int = 42
    """Seed of Python, NumPy and torch in every rank (the data have data.seed, the weights model.seed)."""
    steps: int = 1000
    """Optimizer steps."""
    grad_acc_steps: int = 1
    """Micro-batches per step; used only where data.global_batch_size is null: it is then
    data.batch_size x grad_acc_steps x ranks at the first start, and stored with the run."""
    init_from: str | None = None
    """Start a new run from a trained model: a directory of Hugging Face or GGUF file of a Llama, a run, a checkpoint.
    Its weights, and what it has for every key of `model` that is left at its default; with a section `topk` the cut
    fades into it. The data must be prepared with its tokenizer. A run that has a checkpoint of its own resumes."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite loss or gradient does: end the run before the optimizer step, or skip that step."""
    max_nonfinite: int = 10
    """With on_nonfinite: skip, the most such steps in a row that are skipped; one more ends the run."""
    spikes: SpikesConfig | None = field(default_factory=SpikesConfig)
    """Reporting steps whose loss is far above those before them; null: look for none."""
    data: DataConfig = field(default_factory=DataConfig)
    """Prepared token shards and batches."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The transformer."""
    topk: TopKConfig | None = None
    """The activation on the residual stream; null: a dense model."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """AdamW and learning rate."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Parallelism, precision, memory."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving and resuming."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Metrics."""
    profiling: ProfilingConfig = field(default_factory=ProfilingConfig)
    """Traces, memory snapshots and tables of chosen steps."""
    eval: EvalConfig | None = None
    """Validation during training; null: none."""

    @property
    def checkpoint_dir(self) -> Path:
        """Where the run's checkpoints are."""
        return Path(self.checkpoint.path or Path(self.dump_dir) / "checkpoints")

    def evaluates_at(self, step: int) -> bool:
        """Whether the run evaluates after `step` steps: by eval.every, else with checkpoint.eval; always at the end."""
        if self.eval is None:
            return False
        every = self.checkpoint.eval.every if self.eval.every is None else self.eval.every
        return step == self.steps or (every > 0 and step % every == 0)

    def postpones(self, key: str) -> bool:
        """Rules about the model wait until settle() has filled it from `init_from`."""
        return self.init_from is not None and key.startswith("model.")

    def problems(self) -> Iterator[Problem]:
        if not -(2**31) < self.seed < 2**31:
            yield Problem("seed", f"{self.seed} does not fit 32 bits; take one between -2147483647 and 2147483647")
        if not self.dump_dir:
            yield Problem("dump_dir", f"is missing: the directory of this run, such as dump_dir=runs/{self.name}")
        for name in ("steps", "grad_acc_steps", "max_nonfinite"):
            if getattr(self, name) < 1:
                yield Problem(name, f"{getattr(self, name)} is below 1")
        if self.init_from is not None and self.checkpoint.init_ckpt_path is not None:
            yield Problem(
                "init_from",
                f"{self.init_from} is given beside checkpoint.init_ckpt_path; a run starts from one of them",
            )
        if self.topk is not None and self.init_from is None:
            for problem in self.topk.problems_for(self.model.dim, self.model.n_layers):
                yield problem.under("topk")
