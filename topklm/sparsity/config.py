"""The `topk:` section of a run's configuration and the annealing schedule (paper, section 2.2)."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from topklm.errors import Problem
from topklm.sparsity.registry import activation_names

AnnealForm = Literal["blend", "identity", "relu"]


@dataclass(frozen=True, kw_only=True)
class TopKConfig:
    """Which blocks keep only some entries of the residual stream, and how they come to it.

    Status of a default: *text* stands in the paper, *derived* follows from it, *ours* is our choice.
    """

    activation: str = "topk"
    """Name in the registry of activations (`topklm.sparsity.registry`). topk: text."""
    k: int = 64
    """Entries kept per token, of the D of the residual stream (Eq. 1). 64: the paper's tables."""
    n_dense_tail: int = 2
    """The last n blocks stay dense (`n_nontopk` in the paper). 2: text. As many as blocks: a dense model."""
    anneal_ratio: float = 0.5
    """alpha falls linearly from 1 to 0 over this share of the training steps. Linear: text; 0.5: ours."""
    anneal_form: AnnealForm = "blend"
    """Reading of Eq. 3, with x the stream, m the selection and a = alpha. All are derived, the choice is ours:
    blend: a x + (1 - a) relu(x) m; identity: x (m + a (1 - m)); relu: relu(x) (m + a (1 - m))."""
    anneal_steps: int | None = None
    """Annealing steps as a number, which wins over `anneal_ratio`. null: computed once from the ratio and stored
    with the run, so that extending `steps` later never makes alpha rise again (ours)."""

    def problems(self) -> Iterator[Problem]:
        """Rules over these fields alone."""
        names = activation_names()
        if self.activation not in names:
            near = difflib.get_close_matches(self.activation, names, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
            yield Problem("activation", f"{self.activation!r} is unknown; {advice}")
        if self.k < 1:
            yield Problem("k", f"{self.k} must be at least 1; leave out the section topk for a dense model")
        if self.n_dense_tail < 0:
            yield Problem("n_dense_tail", f"{self.n_dense_tail} must not be negative; 0 leaves no block dense")
        if not 0 <= self.anneal_ratio <= 1:
            yield Problem("anneal_ratio", f"{self.anneal_ratio} must lie in [0, 1]; 0 means no annealing")
        if self.anneal_form not in ("blend", "identity", "relu"):
            yield Problem("anneal_form", f"{self.anneal_form!r} is not one of blend, identity, relu")
        if self.anneal_steps is not None and self.anneal_steps < 0:
            yield Problem("anneal_steps", f"{self.anneal_steps} must not be negative; 0 means no annealing")

    def problems_for(self, dim: int | None, n_layers: int) -> Iterator[Problem]:
        """Rules that need the model: `dim` is D (None: unknown), `n_layers` is L."""
        if self.n_dense_tail > n_layers:
            yield Problem(
                "n_dense_tail",
                f"{self.n_dense_tail} is more than the model's {n_layers} blocks; at most {n_layers} (dense)",
            )
        if dim is not None and self.k > dim:
            yield Problem("k", f"{self.k} is more than the {dim} entries of the residual stream")

    def resolve(self, steps: int) -> TopKConfig:
        """The same configuration with `anneal_steps` filled in for a run of `steps` optimizer steps."""
        if self.anneal_steps is not None:
            return self
        return dataclasses.replace(self, anneal_steps=round(self.anneal_ratio * steps))


def alpha_at(step: int, anneal_steps: int) -> float:
    """alpha(t) = max(0, 1 - t / anneal_steps), 1 dense to 0 TopK; 0 throughout if `anneal_steps` is 0."""
    return max(0.0, 1.0 - step / anneal_steps) if anneal_steps > 0 else 0.0
