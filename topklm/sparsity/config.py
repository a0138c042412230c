"""The `topk:` section of a run's configuration and the annealing schedule (paper, section 2.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from topklm.errors import Problem
from topklm.sparsity.registry import activation_class, activation_names, all_options, option_problems, why_unknown

AnnealForm = Literal["blend", "identity", "relu"]
Schedule = Literal["mask", "k", "none"]
GradientRule = Literal["plain", "straight_through"]


@dataclass(frozen=True, kw_only=True)
class TopKConfig:
    """Which blocks keep only some entries of the residual stream, and how they come to it.

    Status of a default: *text* stands in the paper, *derived* follows from it, *ours* is our choice.
    """

    activation: str = "topk"
    """Name of the activation: topk (text), or another one of docs/activations.md."""
    k: int = 64
    """Entries kept per token, of the D of the residual stream (Eq. 1). 64: the paper's tables. batchtopk and jumprelu
    aim at this mean, relu and identity do not use it."""
    k_per_layer: list[int] | None = None
    """A k for each of the L - n sparse blocks, in their order, in place of the one k (ours). null: k everywhere."""
    n_dense_tail: int = 2
    """The last n blocks stay dense (`n_nontopk` in the paper). 2: text. As many as blocks: a dense model."""
    anneal_ratio: float = 0.5
    """alpha falls linearly from 1 to 0 over this share of the training steps. Linear: text; 0.5: ours."""
    anneal_form: AnnealForm = "blend"
    """Reading of Eq. 3, with x the stream, m the selection and a = alpha. All are derived, the choice is ours:
    blend: a x + (1 - a) relu(x) m; identity: x (m + a (1 - m)); relu: relu(x) (m + a (1 - m))."""
    schedule: Schedule = "mask"
    """What falls in the annealing. mask: the strength alpha of Eq. 3 (text); k: the number of entries, from D to k
    (Llama Scope, for autoencoders; in a language model ours); none: nothing, the cut is there from the first step."""
    gradient: GradientRule = "plain"
    """plain: entries that are cut have no gradient (derived); straight_through: the backward pass takes the activation
    for the identity, so that they have one (ours)."""
    options: dict[str, Any] = field(default_factory=dict)
    """What only this activation has, such as {bandwidth: 0.1} of jumprelu: docs/activations.md has all of them."""
    anneal_steps: int | None = None
    """Annealing steps as a number, which wins over `anneal_ratio`. null: computed once from the ratio and stored
    with the run, so that extending `steps` later never makes alpha rise again (ours)."""

    def problems(self) -> Iterator[Problem]:
        """Rules over these fields alone."""
        if self.activation in activation_names():
            yield from self._activation_problems()
        else:
            yield Problem("activation", why_unknown(self.activation))
        if self.k < 1:
            yield Problem("k", f"{self.k} must be at least 1; leave out the section topk for a dense model")
        if self.n_dense_tail < 0:
            yield Problem("n_dense_tail", f"{self.n_dense_tail} must not be negative; 0 leaves no block dense")
        if not 0 <= self.anneal_ratio <= 1:
            yield Problem("anneal_ratio", f"{self.anneal_ratio} must lie in [0, 1]; 0 means no annealing")
        if self.k_per_layer is not None and any(k < 1 for k in self.k_per_layer):
            yield Problem("k_per_layer", f"{self.k_per_layer}: every k must be at least 1")
        if self.anneal_steps is not None and self.anneal_steps < 0:
            yield Problem("anneal_steps", f"{self.anneal_steps} must not be negative; 0 means no annealing")
        if self.anneal_steps and self.schedule == "none":
            yield Problem("anneal_steps", f"{self.anneal_steps} contradicts schedule none; take schedule=mask, or 0")

    def _activation_problems(self) -> Iterator[Problem]:
        """What the chosen activation does not have."""
        name, cls = self.activation, activation_class(self.activation)
        for key, value, allowed in (
            ("anneal_form", self.anneal_form, cls.forms),
            ("schedule", self.schedule, cls.schedules),
            ("gradient", self.gradient, cls.gradients),
        ):
            if value not in allowed:
                yield Problem(key, f"{value!r} has no meaning for {name}; take {key}={' or '.join(allowed)}")
        if self.k_per_layer is not None and not cls.uses_k:
            yield Problem("k_per_layer", f"{name} has no k; leave it out")
        yield from option_problems(cls.Options, self.options)

    def problems_for(self, dim: int | None, n_layers: int) -> Iterator[Problem]:
        """Rules that need the model: `dim` is D (None: unknown), `n_layers` is L."""
        if self.n_dense_tail > n_layers:
            yield Problem(
                "n_dense_tail",
                f"{self.n_dense_tail} is more than the model's {n_layers} blocks; at most {n_layers} (dense)",
            )
        known = self.activation in activation_names()
        uses_k = not known or activation_class(self.activation).uses_k
        n_sparse = n_layers - self.n_dense_tail
        if self.k_per_layer is not None and len(self.k_per_layer) != n_sparse and n_sparse >= 0:
            yield Problem(
                "k_per_layer",
                f"has {len(self.k_per_layer)} numbers for the {n_sparse} sparse blocks; give one for each",
            )
        for key, most in (("k", self.k), ("k_per_layer", max(self.k_per_layer or [0]))):
            if dim is not None and uses_k and most > dim and (key == "k") == (self.k_per_layer is None):
                yield Problem(key, f"{most} is more than the {dim} entries of the residual stream")
        if known and not list(self._activation_problems()):
            yield from activation_class(self.activation).problems_for(self, dim, n_layers)

    def k_of(self, layer: int) -> int:
        """k of sparse block `layer`, counted from 0."""
        return self.k if self.k_per_layer is None else self.k_per_layer[layer]

    def resolve(self, steps: int) -> TopKConfig:
        """The same configuration with `anneal_steps` filled in for a run of `steps` optimizer steps, and options."""
        if self.anneal_steps is None:
            anneals = self.schedule != "none"
            self = dataclasses.replace(self, anneal_steps=round(self.anneal_ratio * steps) if anneals else 0)
        return dataclasses.replace(self, options=all_options(activation_class(self.activation).Options, self.options))


def alpha_at(step: int, anneal_steps: int) -> float:
    """alpha(t) = max(0, 1 - t / anneal_steps), 1 dense to 0 TopK; 0 throughout if `anneal_steps` is 0."""
    return max(0.0, 1.0 - step / anneal_steps) if anneal_steps > 0 else 0.0
