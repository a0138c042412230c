"""Parameters, tokens, memory and time of runs that have not been started: the first two exact, the others estimates."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from topklm.budget.memory import peak
from topklm.budget.setting import global_batch, setting_of
from topklm.data import DataConfig, open_data
from topklm.errors import ConfigError, TopklmError
from topklm.launch.config import EstimateConfig
from topklm.launch.plan import PlannedRun
from topklm.model import ModelConfig, build_model
from topklm.report.runs import number, read_run
from topklm.train import TrainConfig
from topklm.train.throughput import flops_per_token


@dataclass(frozen=True, kw_only=True)
class Size:
    """What one run needs."""

    parameters: int
    """Counted on the model itself, on the meta device; without embedding and head where the vocabulary is unknown."""
    knows_vocabulary: bool
    """Whether the prepared data told the vocabulary, or the configuration does."""
    tokens: int
    """Training tokens of the whole run."""
    flops: float
    """Floating-point operations of the whole run, 6 N + attention per token."""
    memory: float
    """Bytes on each device: an estimate, see `memory_estimate`."""


def size_of(run: PlannedRun, ranks: int) -> Size:
    """What a run needs on `ranks` devices. Reads the manifest of its data, if they are prepared."""
    config = run.config
    model, knows = config.model, True
    if model.vocab_size == -1:
        vocabulary = _vocabulary(config.data.root_dir, *sorted(config.data.sources))
        knows = vocabulary is not None
        model = dataclasses.replace(model, vocab_size=vocabulary or 1)
    n = parameters(model)
    if not knows:
        n -= (1 if model.weight_tying else 2) * model.dim
    tokens = config.steps * global_batch(config, ranks) * config.data.seq_len
    return Size(
        parameters=n,
        knows_vocabulary=knows,
        tokens=tokens,
        flops=tokens * flops_per_token(model, config.data.seq_len),
        memory=memory_estimate(config, model, ranks),
    )


@lru_cache(maxsize=64)
def parameters(model: ModelConfig) -> int:
    """Number of parameters, counted on the meta device."""
    return sum(p.numel() for p in build_model(model, None, "meta").parameters())


def memory_estimate(config: TrainConfig, model: ModelConfig, ranks: int) -> float:
    """Bytes of all tensors on each device at the highest moment of a step, as `apps.plan` reckons them; NaN where the
    mesh does not fit so many ranks. What the framework takes is not in it, on a small model nearly all."""
    try:
        return peak(setting_of(config, model, ranks)).total
    except ConfigError:
        return math.nan


def speed(runs: Sequence[PlannedRun], ranks: int, assumed: EstimateConfig) -> tuple[float | None, str]:
    """(FLOP/s of a run on all its devices, where that comes from in words); None where it is not known.

    The median over the runs that have logged their speed, else what the configuration assumes.
    """
    measured = []
    for run in runs:
        try:
            lines = read_run(run.dump_dir).training[1:]
        except TopklmError:
            continue
        speeds = [value for line in lines if (value := number(line, "speed/tokens_per_second"))]
        size = size_of(run, ranks)
        if speeds and size.knows_vocabulary:
            measured.append(statistics.median(speeds) * size.flops / size.tokens)
    if measured:
        return statistics.median(measured), f"from the measured speed of {len(measured)} runs of this sweep"
    if assumed.tflops_per_gpu is not None:
        told = f"assuming {assumed.mfu:.0%} of {assumed.tflops_per_gpu:g} TFLOP/s on each of {ranks} devices"
        return assumed.tflops_per_gpu * 1e12 * assumed.mfu * ranks, told
    return None, "unknown until a run of this sweep has measured its speed (or give estimate.tflops_per_gpu)"


@lru_cache(maxsize=16)
def _vocabulary(root_dir: str, *sources: str) -> int | None:
    try:
        return open_data(DataConfig(root_dir=root_dir, sources=dict.fromkeys(sources, 1.0))).vocab_size
    except TopklmError:
        return None
