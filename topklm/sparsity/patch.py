"""`sparsify`: an activation on the residual stream after the first L - n blocks of any stack, in place.

A block's `__class__` becomes a subclass that is made once per block class. So parameters and state-dict keys keep
their names, all blocks share one compiled graph, a deepcopy runs its own weights, and activation checkpointing,
torch.compile and FSDP2 see an ordinary module. (Forward hooks are skipped by a compiled or wrapped block, a
replaced `forward` of a deepcopy runs the original's weights, one subclass per block hits the recompile limit.)

A class with the residual seam `residual_seam(self, stream, update) -> stream + update` has the activation there, where
a kernel takes over the sum (so it must be the sum); others have it on the output of `forward`, or on its first element.
"""

from __future__ import annotations

import copyreg
import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from topklm.errors import ConfigError
from topklm.sparsity.activation import Activation
from topklm.sparsity.blocks import check_untouched, find_blocks, stream_dim
from topklm.sparsity.config import TopKConfig
from topklm.sparsity.kernels.choice import Kernel, KernelChoice
from topklm.sparsity.live_config import refuse_own_topk, write_alpha, write_topk
from topklm.sparsity.readers import readers_of
from topklm.sparsity.registry import build_activation

STATE = "_topk"
"""Attribute of a block that holds the model's `SparseState`; the plain object is in no state dict."""
ACTIVATION = "_topk_activation"
"""Attribute of a block that holds its own `Activation`, with the block's k and thresholds; in no state dict either."""


class SparseState:
    """What the sparse blocks of one model share: the configuration and alpha. Each has an `Activation` of its own.

    `alpha` is a 0-d fp32 tensor on the CPU, whatever the model's device. Kernels on other devices get it as an
    argument by value when they are launched (eager and Inductor both do), so no kernel in flight can see a later
    value, no step copies anything, and no sync is needed. It is no buffer: `to_empty` and `.to(bf16)` pass it by.
    """

    def __init__(self, cfg: TopKConfig, activations: Sequence[Activation]) -> None:
        self.cfg = cfg
        self.activations = tuple(activations)
        self.trains_differently = any(activation.trains_differently for activation in activations)
        self.alpha = torch.zeros((), dtype=torch.float32, device="cpu")
        self.value = 0.0
        # The only thing that a compiled graph depends on: one graph for annealing, one for pure TopK.
        self.annealing = False
        self.recorder: Any = None  # of health.py, while it records

    @property
    def activation(self) -> Activation:
        """That of the first sparse block: of all of them, where they differ in nothing."""
        return self.activations[0]

    def __call__(self, block: nn.Module, x: Tensor) -> Tensor:
        """The block's activation on its pre-activation x [B, T, D]: the seam for whoever calls it otherwise."""
        activation = block.__dict__[ACTIVATION]
        if self.recorder is not None:
            self.recorder.see(block, activation, x)
        alpha = self.alpha if self.annealing else None
        if self.trains_differently and block.training and torch.is_grad_enabled():
            return activation.in_training(x, alpha)
        return activation(x, alpha)

    def of_sum(self, block: nn.Module, stream: Tensor, update: Tensor) -> Tensor | None:
        """The same of stream + update in one pass; None where that is not possible, or someone wants to see the sum."""
        activation = block.__dict__[ACTIVATION]
        if self.recorder is not None or self.trains_differently or not activation.takes_sum(stream, update):
            return None
        return activation.of_sum(stream, update, self.alpha if self.annealing else None)


def _new_sparse(base: Any, *args: Any) -> nn.Module:
    cls = sparse_class(base)
    return cls.__new__(cls, *args)


@functools.cache
def sparse_class(base: Any) -> Any:
    """The subclass of a block class that ends in the activation. The same object for the same class, always."""

    def residual_seam(self: Any, stream: Tensor, update: Tensor) -> Tensor:
        out = self._topk.of_sum(self, stream, update)
        return self._topk(self, base.residual_seam(self, stream, update)) if out is None else out

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = base.forward(self, *args, **kwargs)
        if isinstance(out, tuple):
            return (self._topk(self, out[0]), *out[1:])
        return self._topk(self, out)

    def extra_repr(self: Any) -> str:
        return ", ".join(filter(None, (base.extra_repr(self), self.__dict__[ACTIVATION].describe())))

    def apply_to_tensors(self: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
        # `.to`, `.cuda`, `to_empty`: state goes along to the device, and keeps its dtype and its values.
        base._apply(self, fn, *args, **kwargs)
        activation = self.__dict__[ACTIVATION]
        if activation.state_names:
            activation.to(fn(torch.empty(0, device="cpu")).device)
        return self

    def reduce_ex(self: Any, protocol: Any) -> Any:
        # The class lives in no module: pickle and deepcopy make it again from its base.
        make, args, *rest = base.__reduce_ex__(self, protocol)
        if make is copyreg.__newobj__ and args[0] is cls:  # type: ignore[attr-defined]
            make, args = _new_sparse, (base, *args[1:])
        return (make, args, *rest)

    seam = {"residual_seam": residual_seam} if hasattr(base, "residual_seam") else {"forward": forward}
    members = {**seam, "extra_repr": extra_repr, "__reduce_ex__": reduce_ex, "_apply": apply_to_tensors}
    cls = type(f"TopK{base.__name__}", (base,), {**members, "__doc__": base.__doc__, "__module__": base.__module__})
    return cls


def sparsify(model: nn.Module, cfg: TopKConfig | None, blocks: nn.ModuleList | str | None = None) -> nn.Module:
    """Keep only k entries of the residual stream after each of the first L - n blocks; in place, returns `model`.

    `blocks`: the stack of L blocks, or its attribute path; default `model.layers` or `model.model.layers`. The
    blocks take and return the residual stream [B, T, D] (or a tuple that begins with it). With `cfg` None or
    `n_dense_tail` = L the model stays as it is. alpha is 0 afterwards; see `set_alpha`.

    Call it before activation checkpointing, compiling and sharding: raises `ConfigError` for a model that is
    already sparsified, wrapped, compiled or sharded, without a stack of blocks, or too small for `cfg`. A Hugging Face
    object gets `config.topk` and a warning, because transformers loads what it saves as a dense model.
    """
    if cfg is None:
        return model
    refuse_own_topk(model)
    stack = find_blocks(model, blocks)
    dim = stream_dim(model, stack)
    problems = [*cfg.problems(), *cfg.problems_for(dim, len(stack))]
    if problems:
        raise ConfigError(problems)
    if sparse_states(model):
        raise ConfigError("the model is sparsified already; build it anew to change the configuration")
    check_untouched(model, stack)
    n_sparse = len(stack) - cfg.n_dense_tail
    if n_sparse:
        activations = [build_activation(cfg, dim, layer) for layer in range(n_sparse)]
        if _want_readers(activations):
            list(readers_of(model))  # raises what is wrong before anything is changed
        state = SparseState(cfg, activations)
        for block, activation in zip(stack[:n_sparse], activations, strict=True):
            block.__dict__[STATE], block.__dict__[ACTIVATION] = state, activation
            base: Any = type(block)
            block.__class__ = sparse_class(base)
        write_topk(model, cfg)
        if not any(parameter.is_meta for parameter in model.parameters()):
            measure_readers(model)  # on meta there is nothing to measure yet
    return model


def sparse_states(model: nn.Module) -> list[SparseState]:
    """What the sparse blocks of `model` hold: one state, unless models with their own were joined; often none."""
    found = (module.__dict__.get(STATE) for module in model.modules())
    return list(dict.fromkeys(state for state in found if state is not None))


def set_alpha(model: nn.Module, value: float) -> None:
    """Set alpha of all sparse blocks: 1 dense ... 0 TopK. No recompilation, no sync; 0 takes the pure path.

    Raises `ConfigError` for a value outside [0, 1] and for a model without sparse blocks.
    """
    value = float(value)
    if math.isnan(value) or not 0 <= value <= 1:
        raise ConfigError(f"alpha must lie in [0, 1], not {value}")
    states = sparse_states(model)
    if not states:
        raise ConfigError("the model has no sparse blocks; call sparsify(model, cfg) first")
    for state in states:
        with torch.no_grad():
            state.alpha.fill_(value)
        state.value = value
        state.annealing = bool(state.alpha)  # as fp32 sees it: 1e-46 is 0
        for activation in state.activations:
            activation.at(value)
    write_alpha(model, value)


def get_alpha(model: nn.Module) -> float | None:
    """The alpha that was set last, or None for a model without sparse blocks. No sync."""
    states = sparse_states(model)
    return states[0].value if states else None


def activations_of(model: nn.Module) -> list[Activation]:
    """Of the sparse blocks, in their order; block i has number i. Empty for a dense model."""
    return [module.__dict__[ACTIVATION] for module in model.modules() if ACTIVATION in module.__dict__]


def set_kernel(model: nn.Module, choice: KernelChoice) -> None:
    """How the sparse blocks compute: "auto", as new ones do, with the Triton kernel where it can run; "triton" with
    it or not at all; "torch" without it. The results are the same to the bit.

    Raises `ConfigError` if "triton" cannot be had: not installed, or no kernel for the model's activation. A tensor
    that it cannot take (a device, a dtype, too wide a row) raises in the forward pass then.
    """
    kernel = Kernel.of(choice)
    activations = activations_of(model)
    if choice == "triton" and (without := {a.name for a in activations if not a.has_kernel}):
        raise ConfigError(f"kernel triton: there is none for {', '.join(sorted(without))}, only for topk; take auto")
    for activation in activations:
        activation.kernel = kernel


@contextmanager
def true_gradients(model: nn.Module) -> Iterator[None]:
    """Inside, gradients are derivatives of what the model computes, also of one that was trained with others
    (`gradient: straight_through`)."""
    found = [(activation, activation._through) for activation in activations_of(model)]
    try:
        for activation, _ in found:
            activation._through = False
        yield
    finally:
        for activation, own in found:
            activation._through = own


def activation_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Thresholds and norms of the activations by name, `layers.<i>.<name>`: the tensors themselves, fp32.

    They are no part of the model's state dict, so that dense and sparse checkpoints load into each other; a checkpoint
    has them beside it. Empty for activations without state, such as topk.
    """
    return {
        f"layers.{i}.{name}": tensor
        for i, activation in enumerate(activations_of(model))
        for name, tensor in activation.tensors().items()
    }


@torch.no_grad()
def measure_readers(model: nn.Module) -> None:
    """Tell each activation that wants to know (normtopk) what reads its block's stream next; every rank calls it.

    `sparsify` does it where the weights are there, training at defined steps. Weights that change otherwise (loading
    others by hand) call for it again; `load_model` takes what the checkpoint holds.
    """
    activations = activations_of(model)
    if _want_readers(activations):
        for activation, (matrices, gains) in zip(activations, readers_of(model), strict=False):
            activation.readers(matrices, gains)


def _want_readers(activations: Sequence[Activation]) -> bool:
    return any(type(activation).readers is not Activation.readers for activation in activations)
