"""The whole plan of a run on a machine: sizes, memory, time, checkpoints, what would make it fit, what looks odd."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from topklm.budget import sizes
from topklm.budget.config import PlanConfig
from topklm.budget.course import Checkpoints, Course, checkpoints_of, course_of
from topklm.budget.gpus import GPU, find_gpu
from topklm.budget.memory import Moment, needed, peak
from topklm.budget.network import Traffic, traffic_of
from topklm.budget.notes import notes
from topklm.budget.search import MODES, Remedy, largest_micro_batch, remedies, with_mode
from topklm.budget.setting import Setting, setting_of
from topklm.data import TrainData, open_data
from topklm.errors import ConfigError, DataError, Problem
from topklm.model import ModelConfig
from topklm.train.init_from import start_from


@dataclass(frozen=True, kw_only=True)
class Mode:
    """The run with one mode of activation checkpointing."""

    name: str
    """none, selective or full."""
    peak: Moment
    needed: float
    """Bytes, with the allocator's slack and CUDA's context."""
    fits: bool
    largest: int | None
    """The largest micro-batch (data.batch_size) that fits, up to a rank's share of the global batch."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run needs."""

    name: str
    gpu: GPU
    ranks: int
    nodes: int
    mfu: float
    setting: Setting
    parameters: dict[str, int]
    """By part."""
    modes: list[Mode]
    """That of the configuration and the others, in the order of MODES."""
    course: Course
    epochs: float | None
    """Times that the run sees its data; None where they are not prepared."""
    checkpoints: Checkpoints
    traffic: Traffic
    anneal_steps: int | None
    """None for a dense model."""
    warmup: int
    remedies: list[Remedy]
    """Empty where it fits."""
    notes: list[str]
    """What looks odd, a sentence each."""

    @property
    def mode(self) -> Mode:
        """The configuration's own."""
        return next(mode for mode in self.modes if mode.name == self.setting.checkpointing)

    @property
    def fits(self) -> bool:
        return self.mode.fits


def make_plan(config: PlanConfig) -> Plan:
    """Plan a run. Reads the manifests of its data if they are there, and the source of `init_from`.

    Raises `ConfigError` where the vocabulary is not known, or the mesh does not fit the ranks.
    """
    train, data = config.train, _data(config)
    if train.init_from is not None:
        train = start_from(train, None)
    model = _with_vocabulary(config, train.model, data)
    train = dataclasses.replace(train, model=model)
    if train.topk is not None:
        train = dataclasses.replace(train, topk=train.topk.resolve(train.steps))
    gpu = find_gpu(config.gpu, config.gpu_gib, config.gpu_tflops, config.gpu_link_gbps)
    setting = setting_of(train, model, config.ranks)

    def need(tried: Setting) -> float:
        return needed(tried, config.slack, config.context_gib * 2**30)

    def fits(tried: Setting) -> bool:
        return need(tried) <= gpu.memory

    modes = []
    for name in MODES:
        tried = setting.with_checkpointing(name)
        modes.append(
            Mode(
                name=name, peak=peak(tried), needed=need(tried), fits=fits(tried),
                largest=largest_micro_batch(with_mode(train, name), model, config.ranks, fits),
            )
        )  # fmt: skip
    course = course_of(train, model, config.ranks, gpu.peak * config.mfu)
    checkpoints = checkpoints_of(train, setting, config.nodes, config.disk_gbps * 1e9)
    traffic = traffic_of(setting, config.gpus, gpu.link)
    return Plan(
        name=config.name,
        gpu=gpu,
        ranks=config.ranks,
        nodes=config.nodes,
        mfu=config.mfu,
        setting=setting,
        parameters=sizes.by_part(model),
        modes=modes,
        course=course,
        epochs=None if data is None else course.tokens / sum(map(len, data.train.values())),
        checkpoints=checkpoints,
        traffic=traffic,
        anneal_steps=None if train.topk is None else train.topk.anneal_steps,
        warmup=0 if train.optim.scheduler == "constant" else train.optim.warmup,
        remedies=[] if fits(setting) else list(remedies(train, model, config.gpus, config.nodes, fits)),
        notes=list(notes(train, setting, course, checkpoints, traffic.seconds(config.nodes), config.mfu)),
    )


def _data(config: PlanConfig) -> TrainData | None:
    """The prepared data, if they are there."""
    if not any((Path(config.data.root_dir) / name).is_dir() for name in config.data.sources):
        return None
    try:
        return open_data(config.data)
    except (ConfigError, DataError):
        return None  # apps.train tells what is wrong with them


def _with_vocabulary(config: PlanConfig, model: ModelConfig, data: TrainData | None) -> ModelConfig:
    known = data.vocab_size if data is not None else config.vocab_size
    if model.vocab_size == -1 and known is None:
        told = (
            f"is not known: no prepared data could be opened in {config.data.root_dir}; give vocab_size=32000, or "
            "what the tokenizer has"
        )
        raise ConfigError([Problem("vocab_size", told)])
    return model if model.vocab_size != -1 else dataclasses.replace(model, vocab_size=known or 0)
