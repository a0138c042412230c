"""What an activation is: the base class of the files in `topklm/sparsity/activations/`.

One instance belongs to one sparse block. `activation(x, alpha)` is what the model computes with; `selected(x)` is the
selection at alpha = 0 for whoever looks at it or changes it (health, statistics, interventions, export). Neither knows
of other positions or rows. Only `in_training` may differ, and leaves in `seen` what `update` needs between two steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from topklm.errors import Problem
from topklm.sparsity.kernels.choice import Kernel
from topklm.sparsity.masks import cut, straight_through
from topklm.sparsity.registry import make_options

if TYPE_CHECKING:
    from topklm.sparsity.config import TopKConfig


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Of an activation that has none."""


class Activation:
    """A of the residual stream: x [..., D] to A(x) [..., D].

    A new one defines `selected`, and what else differs from here. It must be traceable by torch.compile: every block
    runs the same graph as long as what differs between blocks and steps is a tensor, not a Python number.
    """

    name: ClassVar[str] = ""
    """In the registry."""
    Options: ClassVar[type] = NoOptions
    """Dataclass of what stands under `topk.options`."""
    forms: ClassVar[tuple[str, ...]] = ("blend", "identity", "relu")
    """Values of `anneal_form` that mean something here."""
    schedules: ClassVar[tuple[str, ...]] = ("mask", "none")
    """Values of `schedule`."""
    gradients: ClassVar[tuple[str, ...]] = ("plain", "straight_through")
    """Values of `gradient`."""
    cuts: ClassVar[bool] = True
    """Whether anything is cut."""
    exact: ClassVar[bool] = False
    """Whether every token keeps the same number of entries."""
    by_value: ClassVar[bool] = False
    """Whether those are the largest by value."""
    has_kernel: ClassVar[bool] = False
    """Whether `kernel` means anything: it adds and cuts in one pass where it runs."""
    uses_k: ClassVar[bool] = True
    """Whether k means anything: an exact number, or the mean that is aimed at."""
    state_names: ClassVar[tuple[str, ...]] = ()
    """Attributes that are tensors [D] or 0-d in fp32, trained or measured: part of a checkpoint, outside the model's
    state dict. An `nn.Parameter` among them has an optimizer."""
    lr: float = 0.003
    """Highest learning rate of its parameters, the same in every block; it follows the schedule of the weights'."""
    trains_differently: bool = False
    """Whether training calls `in_training` instead of the activation."""
    noncausal_training: bool = False
    """Whether `in_training` looks at later tokens: then the training loss is no language model's, and is called so."""
    counted: Tensor | None = None
    """bool [B]: the rows of the next passes in training that are of the batch; None: all. Rows that only stand in where
    a batch does not divide evenly must not move what is measured."""
    seen: Tensor | None = None
    """float64 [n]: sums over the tokens of the last forward pass in training, overwritten by each (also by one that is
    recomputed for the backward, with the same numbers)."""

    def __init__(self, cfg: TopKConfig, dim: int | None = None, layer: int = 0) -> None:
        self.k = cfg.k_of(layer)
        self.form = cfg.anneal_form
        self.options: Any = make_options(self.Options, cfg.options)
        self._through = cfg.gradient == "straight_through"
        self.kernel = Kernel.of("auto")

    @classmethod
    def needs_dim(cls, cfg: TopKConfig) -> bool:
        """Whether it cannot be made without knowing D."""
        return bool(cls.state_names)

    @classmethod
    def problems_for(cls, cfg: TopKConfig, dim: int | None, n_layers: int) -> Iterator[Problem]:
        """Rules of this activation that need the model, of a `cfg` that has no other problems."""
        return iter(())

    @classmethod
    def signed(cls, cfg: TopKConfig) -> bool:
        """Whether A(x) can be negative at alpha = 0."""
        return cfg.anneal_form == "identity"

    def __call__(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        """`alpha`: a 0-d fp32 tensor on the CPU while annealing, None at alpha = 0."""
        if self._through and torch.is_grad_enabled():
            return straight_through(x, self.apply(x.detach(), alpha))
        return self.apply(x, alpha)

    def apply(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        """A(x) with the plain gradient."""
        return cut(x, self.selected(x), alpha, self.form)

    def takes_sum(self, stream: Tensor, update: Tensor) -> bool:
        """Whether `of_sum` computes A(stream + update) in one pass, so that nobody has to add them up before."""
        return self.has_kernel and not self._through and self.kernel.takes_sum(stream, update)

    def of_sum(self, stream: Tensor, update: Tensor, alpha: Tensor | None) -> Tensor:
        """A(stream + update), where `takes_sum`."""
        raise NotImplementedError

    def in_training(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        """What a training step computes, where it `trains_differently`."""
        return self(x, alpha)

    def selected(self, x: Tensor) -> Tensor:
        """The selection at alpha = 0 as a bool mask [..., D], without gradient. NaN is selected."""
        raise NotImplementedError

    def selected_now(self, x: Tensor) -> Tensor:
        """The selection at the alpha that is set, bool [..., D]; not `selected` only with `schedule: k`."""
        return self.selected(x)

    def active(self, x: Tensor) -> Tensor:
        """bool [..., D]: selected now and > 0, what L0 and dead neurons count."""
        return self.selected_now(x) & (x > 0)

    def margin(self, x: Tensor) -> Tensor:
        """[...]: how far the least selected value is above the largest other one; NaN where that means nothing."""
        return torch.full_like(x[..., 0], torch.nan)

    def at(self, alpha: float) -> None:
        """Told whenever alpha is set, before the next forward pass."""

    def reads_at(self, step: int) -> bool:
        """Whether `readers` wants to be told before training step `step`."""
        return False

    def readers(self, matrices: Sequence[Tensor], gains: Sequence[Tensor]) -> None:
        """Told at those times what reads this stream next: matrices [out, D], which may be DTensors, and the gain [D]
        of the norm before each."""

    def update(self, seen: Tensor, skip: Tensor) -> Tensor | None:
        """Between the backward pass of a step and its optimizers: use `seen`, summed over micro-batches and ranks.

        May add to the gradient of its parameters. `skip`: 0-d bool, true where the step is not taken. Returns its 0-d
        term of the loss (for the metrics: it has no gradient of its own), or None.
        """
        return None

    def after_step(self) -> None:
        """After the optimizer of its parameters: bring them back where they mean something."""

    def tensors(self) -> dict[str, Tensor]:
        """Its state by name."""
        return {name: getattr(self, name) for name in self.state_names}

    def to(self, device: torch.device) -> None:
        """Move its state, which keeps its values and its dtype."""
        for name, tensor in self.tensors().items():
            if tensor.device == device or device.type == "meta":
                continue
            if isinstance(tensor, nn.Parameter):
                tensor.data = tensor.data.to(device)
            else:
                setattr(self, name, tensor.to(device))
        if self.seen is not None and device.type != "meta":
            self.seen = self.seen.to(device)

    def describe(self) -> str:
        """For the repr of a block."""
        return f"activation={self.name}" + (f", k={self.k}" if self.uses_k else "")
