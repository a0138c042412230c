"""A bundle as one model among others: its run, its step, how it was read, and what that is called in a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from topklm.bundles.bundle import Bundle
from topklm.bundles.meta import META


@dataclass(frozen=True, kw_only=True)
class NamedBundle:
    """One bundle and the name of its run."""

    bundle: Bundle
    """The statistics."""
    name: str
    """The run's name, or its directory where two runs have the same."""

    @property
    def run(self) -> str:
        """The run's directory, or what stands for it: bundles of one run share it."""
        path = Path(self.bundle.meta.model.path)
        return str(path.parent.parent if path.parent.name == "checkpoints" else path.parent)

    @property
    def step(self) -> int | None:
        """Optimizer steps of the weights; None if unknown, and for initial weights."""
        return None if self.is_initial else self.bundle.meta.model.step

    @property
    def is_initial(self) -> bool:
        """Whether these are initial weights: a control."""
        return self.bundle.meta.model.init == "random"

    @property
    def is_topk(self) -> bool:
        """Whether the model is a TopK model (also while it is annealing)."""
        return self.bundle.meta.model.topk is not None

    @property
    def cut(self) -> dict[str, Any] | None:
        """k, relu and n_dense_tail that a dense model was read through: a control; None: as it is."""
        return self.bundle.meta.reading.read_topk

    @property
    def is_control(self) -> bool:
        """Whether it is there to be compared with, not for itself."""
        return self.is_initial or self.cut is not None

    @property
    def alpha(self) -> float | None:
        """Annealing coefficient that the model ran with: 1 dense ... 0 TopK; None for a dense model."""
        return self.bundle.meta.model.alpha

    @property
    def anneal_steps(self) -> int:
        """Steps at which alpha reaches 0; 0 without annealing."""
        return int((self.bundle.meta.model.topk or {}).get("anneal_steps") or 0)

    @property
    def at_own_alpha(self) -> bool:
        """Whether alpha is what the schedule has at this step. True for dense models and where it cannot be told."""
        if self.alpha is None or self.step is None:
            return True
        own = max(0.0, 1 - self.step / self.anneal_steps) if self.anneal_steps else 0.0
        return abs(self.alpha - own) < 1e-6

    @property
    def tail(self) -> int:
        """Layers from this one on are the dense tail of a TopK model; the number of layers for a dense model."""
        n = self.bundle.meta.model.n_layers
        return n - int((self.bundle.meta.model.topk or {}).get("n_dense_tail") or 0) if self.is_topk else n

    @property
    def label(self) -> str:
        """What tells it from the others in a legend, but for the step."""
        parts = [self.name]
        if self.cut is not None:
            parts.append(f"read through {'ReLU and ' if self.cut.get('relu', True) else ''}top-{self.cut['k']}")
        if self.is_initial:
            parts.append("at random initialisation")
        if self.bundle.meta.reading.site != "post":
            parts.append("pre-activation")
        if not self.at_own_alpha:
            parts.append(f"at alpha {self.alpha:g}")
        return ", ".join(parts)

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for the same reading of the same weights on the same tokens."""
        meta = self.bundle.meta
        return (self.run, meta.model.path, meta.model.init, meta.model.alpha, str(meta.reading), meta.windows_sha256)

    def provenance(self) -> str:
        """Run, step, alpha, bundle, tokens and tokenizer in one line."""
        meta = self.bundle.meta
        step = "initial weights" if self.is_initial else f"step {'unknown' if self.step is None else f'{self.step:,}'}"
        alpha = "dense" if self.alpha is None else f"alpha {self.alpha:g}"
        sources = ", ".join(f"{part.source}/{part.split}" for part in meta.corpus.parts)
        return (
            f"{self.label}: {self.run}, {step}, {alpha}, bundle {self.bundle.sha256[:12]}, {meta.n_tokens:,} tokens of "
            f"{sources}, tokenizer {meta.corpus.tokenizer_sha256[:12]}"
        )


T = TypeVar("T", bound=NamedBundle)


def bundles_in(path: Path) -> list[Path]:
    """The path itself if it is a bundle, else the bundles in it, else itself, to be told what it lacks."""
    if (path / META).is_file() or not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix != ".tmp" and (p / META).is_file()) or [path]


def named(found: Sequence[T]) -> list[T]:
    """The same, with a run's directory for its name where another run has that name too."""
    runs: dict[str, set[str]] = {}
    for each in found:
        runs.setdefault(each.name, set()).add(each.run)
    return [replace(each, name=each.run) if len(runs[each.name]) > 1 else each for each in found]
