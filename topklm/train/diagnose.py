"""Where a NaN or infinity came from: the step is computed again, and looked at from the weights to the gradients.

The weights are still those of the bad step, since the optimizer refused it, and its batch is a function of (seed,
step). All ranks take part, because a sharded model needs them; each looks at its own numbers before they are summed
over the ranks. Compiled blocks run eagerly: then every module's hooks are called, and a fused kernel hides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from topklm.sparsity.patch import activation_tensors

NO_MEMORY = "out of memory"
STAGES = ("weight", "output", "loss", "gradient", "reduced gradient", "gradient norm", NO_MEMORY)
"""What is looked at, in the order of a step: a number that is wrong in one makes the later ones wrong. Last, that the
step could not be computed again: eagerly it may need more memory than compiled."""


@dataclass(frozen=True)
class Finding:
    """The first tensor of a step with a non-finite number, on one rank."""

    stage: str
    """One of `STAGES`."""
    name: str
    """Parameter or module, as in a checkpoint; empty for the loss and the norm."""
    what: str
    """In words: `output of block 3`, `gradient of parameter layers.1.feed_forward.w2.weight`."""
    bad: int
    """Numbers that are not finite."""
    of: int
    """Numbers of the tensor, or of this rank's part of it."""
    micro_batch: int | None = None
    """Which one of this rank's; None for what belongs to the whole step."""

    @property
    def layer(self) -> int | None:
        """The block, counted from 0; None outside of the blocks."""
        found = re.search(r"\blayers\.(\d+)", self.name)
        return int(found[1]) if found else None


@torch.no_grad()
def first_bad_tensor(model: nn.Module, optimizer: Optimizer) -> Finding | None:
    """The first weight, moment or threshold of this rank's part that is not finite. One synchronisation."""
    tensors = list(_state(model, optimizer))
    # A sum that is finite is one of finite numbers, and the quickest look; one that is not may just have overflowed.
    fine = torch.stack([tensor.sum().double() for _, tensor in tensors]).isfinite().tolist()
    suspects = (_finding("weight", name, name, t) for (name, t), ok in zip(tensors, fine, strict=True) if not ok)
    return next((finding for finding in suspects if finding.bad), None)


def first_bad_number(
    model: nn.Module, optimizer: Optimizer, compute: Callable[[], object], clip: Callable[[], Tensor]
) -> Finding | None:
    """The first non-finite number of a step on this rank; None where all is finite. Every rank calls it.

    `compute` runs the forward and backward pass of the step's micro-batches; `clip` returns the gradient norm over all
    ranks. Leaves gradients behind.
    """
    wrong = first_bad_tensor(model, optimizer)
    probe = _Probe()
    optimizer.zero_grad()
    try:
        with probe.watching(model), torch.compiler.set_stance("force_eager"):
            compute()
    except torch.OutOfMemoryError:
        return wrong or probe.first or Finding(NO_MEMORY, "", "", 0, 0)
    wrong = wrong or probe.first
    if wrong is None:
        gradients = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
        what = "gradient, summed over the ranks, of parameter"
        found = (_finding("reduced gradient", _plain(n), f"{what} {_plain(n)}", _local(g)) for n, g in gradients)
        wrong = next((finding for finding in found if finding.bad), None)
    norm = clip()  # by all ranks, whatever each has found
    if wrong is None and not norm.isfinite():
        return _finding("gradient norm", "", "norm of the gradients, each of which is finite", norm)
    return wrong


class _Probe:
    """Hooks on every module and parameter that remember the first non-finite number."""

    def __init__(self) -> None:
        self.first: Finding | None = None
        self._micro_batch = -1
        self._forward = False
        self._parameters: set[int] = set()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            self._stack = stack
            for name, module in model.named_modules():
                # What is sharded is whole between this module's own pre-hook, which comes first, and its end.
                if module is model or FSDPModule in type(module).__mro__:
                    self._keep(module.register_forward_pre_hook(self._enter(_plain(name), is_root=module is model)))
                self._keep(module.register_forward_hook(self._leave(_plain(name), is_root=module is model)))
            yield

    def _keep(self, handle: Any) -> None:
        self._stack.callback(handle.remove)

    def _enter(self, prefix: str, *, is_root: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: object) -> None:
            if is_root:
                self._micro_batch += 1
                self._forward = True
            for name, parameter in module.named_parameters():
                if isinstance(parameter, DTensor) or id(parameter) in self._parameters or not parameter.requires_grad:
                    continue
                self._parameters.add(id(parameter))
                full = _plain(f"{prefix}.{name}" if prefix else name)
                self._keep(parameter.register_hook(self._gradient(full, f"gradient of parameter {full}")))

        return hook

    def _leave(self, name: str, *, is_root: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if not self._forward or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                return  # a block that is computed again in the backward pass has been seen
            shown = re.sub(r"^layers\.(\d+)$", r"block \1", name)
            if is_root:
                self._forward = False
                self._see("loss", "", "loss", tensor)
                return
            self._see("output", name, f"output of {shown}", tensor)
            if tensor.requires_grad:
                tensor.register_hook(self._gradient(name, f"gradient of the output of {shown}"))

        return hook

    def _gradient(self, name: str, what: str) -> Callable[[Tensor], None]:
        return lambda gradient: self._see("gradient", name, what, gradient)

    def _see(self, stage: str, name: str, what: str, tensor: Tensor) -> None:
        if self.first is None:
            finding = _finding(stage, name, what, _local(tensor), self._micro_batch)
            self.first = finding if finding.bad else None


def _state(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Weights, moments and thresholds by name, this rank's part of each."""
    for name, parameter in model.named_parameters():
        yield f"weight {_plain(name)}", _local(parameter.detach())
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"{key} of {_plain(name)}", _local(value)
    for name, tensor in activation_tensors(model).items():
        yield f"activation {name}", tensor.detach()


def _finding(stage: str, name: str, what: str, tensor: Tensor, micro_batch: int | None = None) -> Finding:
    bad = int((~tensor.detach().isfinite()).sum())  # outside of autograd: a checkpointed block counts what it saves
    return Finding(stage, name, what, bad, tensor.numel(), micro_batch)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _plain(name: str) -> str:
    """The name that a parameter has in a checkpoint, a module without its wrappers."""
    return re.sub(r"_checkpoint_wrapped_module\.?|_orig_mod\.?", "", name).rstrip(".")
