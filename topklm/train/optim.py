"""AdamW in one group and Meta Lingua's learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from topklm.errors import Problem


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule, in Meta Lingua's names and with its defaults."""

    unused_keys: ClassVar[dict[str, str]] = {
        "annealing_step": "Lingua does not use it either; wsd decays over decay_fraction",
    }

    lr: float = 3e-4
    """Highest learning rate."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on every parameter (norms and embeddings too), as in Lingua."""
    epsilon: float = 1e-8
    """AdamW's epsilon."""
    beta1: float = 0.9
    """Decay of the running mean of gradients."""
    beta2: float = 0.95
    """Decay of the running mean of squared gradients."""
    clip: float = 1.0
    """Largest norm of the whole gradient; longer ones are scaled down."""
    scheduler: Literal["constant", "linear", "inv_sqrt", "cosine", "wsd"] = "cosine"
    """Shape of the learning rate after the warm-up; constant has no warm-up, as in Lingua."""
    warmup: int = 2000
    """Steps of linear warm-up from 0; the first step has learning rate 0."""
    lr_min_ratio: float = 0.1
    """Lowest learning rate, as a part of lr."""
    cycle_length: float = 1.0
    """Length of one cycle of cosine and wsd, as a part of all steps."""
    cosine_theta: float = 1.0
    """Exponent that bends the cosine."""
    decay_fraction: float = 0.1
    """The part of a wsd cycle that decays."""
    exp_factor: float = 0.5
    """Exponent of inv_sqrt."""

    def problems(self) -> Iterator[Problem]:
        for name in ("lr", "epsilon", "clip", "cycle_length", "cosine_theta", "exp_factor"):
            if not 0 < getattr(self, name) < math.inf:
                yield Problem(name, f"{getattr(self, name)} must be a finite number above 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield Problem(name, f"{getattr(self, name)} must be at least 0 and below 1")
        for name in ("lr_min_ratio", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                yield Problem(name, f"{getattr(self, name)} must be within 0 and 1")
        if not 0 <= self.weight_decay < math.inf:
            yield Problem("weight_decay", f"{self.weight_decay} must be a finite number that is not negative")
        if self.warmup < 0:
            yield Problem("warmup", f"{self.warmup} is negative; 0: no warm-up")
        if self.scheduler == "wsd" and self.decay_fraction >= self.cycle_length:
            yield Problem("decay_fraction", f"{self.decay_fraction} must be below cycle_length {self.cycle_length}")
        if self.scheduler == "wsd" and self.lr_min_ratio == 0:
            yield Problem("lr_min_ratio", "wsd decays as 1/lr and cannot end at 0; give a small positive ratio")


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of optimizer step `step` (counted from 0) of a run of `steps` steps."""
    return config.lr * _factor(config, step, steps)


def _factor(c: OptimConfig, step: int, steps: int) -> float:
    if c.scheduler == "constant":
        return 1.0
    if step < c.warmup:
        return step / c.warmup
    low = c.lr_min_ratio
    if c.scheduler == "inv_sqrt":
        return max((c.warmup / step) ** c.exp_factor if step else 1.0, low)
    if step > steps:
        return low
    done = (step - c.warmup) / max(1, steps - c.warmup)  # 0 ... 1 after the warm-up
    if c.scheduler == "linear":
        return done * low + (1 - done)
    if c.scheduler == "cosine":
        # Lingua turns the wave over at every cycle, so that a new cycle starts where the last one ended. (The end of
        # the run is the end of its last cycle, not the start of another.)
        sign = -1 if int(min(step, steps - 1) // (steps * c.cycle_length)) % 2 else 1
        wave = sign * math.cos(math.pi * done**c.cosine_theta / c.cycle_length)
        return low + 0.5 * (1 - low) * (wave + 1)
    return _wsd(c, step, steps)


def _wsd(c: OptimConfig, step: int, steps: int) -> float:
    """Warm-up, stable, decay (arXiv 2410.05192): 1/lr is interpolated in the decay."""
    cycle = max(1, int(steps * c.cycle_length))
    end = steps if step == steps else cycle * (step // cycle + 1)
    length = int(end * c.decay_fraction)
    if step <= end - length or length == 0:
        return 1.0
    progress = (step - (end - length)) / length
    return 1 / (progress / c.lr_min_ratio + (1 - progress))


def apply_settings(optimizer: torch.optim.Optimizer, config: OptimConfig) -> None:
    """Set what a restored optimizer took from its checkpoint to what the run is configured with now."""
    for group in optimizer.param_groups:
        group.update(betas=(config.beta1, config.beta2), eps=config.epsilon, weight_decay=config.weight_decay)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over all parameters; it skips its step on the device where `found_inf` is set to 1."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        eps=config.epsilon,
        fused=True,
    )
