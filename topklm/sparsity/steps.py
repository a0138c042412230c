"""What activations with a state do in training, besides the forward pass: thresholds learn, norms are measured.

A training loop calls `before`, for each micro-batch `count_only` and after its backward pass `add`, and beside its
optimizer `finish`. For
activations without state, such as topk, all of it is nothing.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from topklm.sparsity.patch import activation_tensors, activations_of, measure_readers


class ActivationSteps:
    """The steps of one model's activations, on every rank.

    `reduce`: the ranks of the default process group train one model together; gradients of the loss are then taken as
    scaled for their mean, as FSDP2 does. Make it when the model is on its device.
    """

    def __init__(self, model: nn.Module, *, reduce: bool = False) -> None:
        self._model, self._reduce = model, reduce
        self._activations = activations_of(model)
        self._watching = [a for a in self._activations if a.trains_differently and a.seen is not None]
        self._totals = [torch.zeros_like(a.seen) for a in self._watching if a.seen is not None]
        self._terms: list[Tensor] = []
        parameters = {name: t for name, t in activation_tensors(model).items() if isinstance(t, nn.Parameter)}
        self._parameters = parameters
        self._optimizer = None
        if parameters:
            self._lr = next(a.lr for a in self._activations)
            # Nothing decays: a threshold has no reason to be small.
            self._optimizer = torch.optim.Adam(parameters.values(), lr=self._lr, fused=True)
            for p in parameters.values():  # made now, so that a checkpoint can be read into it
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                moments = {name: torch.zeros_like(p, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[p] = {"step": step, **moments}

    @property
    def noncausal(self) -> bool:
        """Whether the training loss looks at later tokens."""
        return any(activation.noncausal_training for activation in self._activations)

    def before(self, step: int) -> None:
        """Before the forward pass of a step, counted from 0: measure what has to be measured now."""
        if any(activation.reads_at(step) for activation in self._activations):
            measure_readers(self._model)

    def count_only(self, rows: Tensor | None) -> None:
        """Before a micro-batch: which of its rows, bool [B], are of the batch and no padding; None: all."""
        for activation in self._watching:
            activation.counted = rows

    def add(self) -> None:
        """After the backward pass of a micro-batch: add up what its forward pass saw."""
        for total, activation in zip(self._totals, self._watching, strict=True):
            assert activation.seen is not None
            total += activation.seen

    def finish(self, rate: float = 1.0, found_inf: Tensor | None = None) -> None:
        """After the last micro-batch of a step: running thresholds move, trained ones take a step.

        `rate`: the learning rate as a share of its highest. `found_inf`: 0-d, 1 where the step must not be taken.
        """
        if not self._watching and self._optimizer is None:
            return
        device = self._totals[0].device if self._totals else next(iter(self._parameters.values())).device
        found = torch.zeros((), device=device) if found_inf is None else found_inf
        if self._reduce:
            self._over_ranks()
        with torch.no_grad():
            pairs = zip(self._watching, self._totals, strict=True)
            terms = [activation.update(total, found.bool()) for activation, total in pairs]
        self._terms = [term for term in terms if term is not None]
        if self._optimizer is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = self._lr * rate
            self._optimizer.found_inf = found  # type: ignore[attr-defined]
            self._optimizer.step()
            self._optimizer.zero_grad()
        for activation in self._activations:
            activation.after_step()
        for total in self._totals:
            total.zero_()

    def _over_ranks(self) -> None:
        """Sums of what was seen, means of the gradients; one collective each."""
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters.values()]
        for tensors, scale in ((self._totals, 1.0), (gradients, 1.0 / dist.get_world_size())):
            if tensors:
                whole = torch.cat([t.flatten() for t in tensors])
                dist.all_reduce(whole)
                for tensor, part in zip(tensors, whole.split([t.numel() for t in tensors]), strict=True):
                    tensor.copy_(part.view_as(tensor) * scale)
        for p, gradient in zip(self._parameters.values(), gradients, strict=True):
            p.grad = gradient

    def figures(self) -> dict[str, float]:
        """Of the last step: `loss/l0`, the sum of the layers' terms of the loss, and `topk/threshold`, the mean."""
        found = {}
        if self._terms:
            found["loss/l0"] = float(torch.stack(self._terms).sum())
        thresholds = [t.detach() for name, t in activation_tensors(self._model).items() if name.endswith(".threshold")]
        if thresholds:
            found["topk/threshold"] = float(torch.stack([t.double().mean() for t in thresholds]).mean())
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """All that a checkpoint needs to go on: the tensors themselves, to be written or filled in place.

        Names are those of `activation_tensors`, and under `optim.` those of the optimizer.
        """
        tensors = {name: tensor.detach() for name, tensor in activation_tensors(self._model).items()}
        for name, p in self._parameters.items():
            assert self._optimizer is not None
            tensors |= {f"optim.{name}.{key}": value for key, value in self._optimizer.state[p].items()}
        return tensors
