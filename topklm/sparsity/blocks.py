"""Finding the stack of blocks in a model, the width of its residual stream, and reasons to leave it alone."""

from __future__ import annotations

from torch import nn

from topklm.errors import ConfigError

_PATHS = ("layers", "model.layers")
_DIM_NAMES = ("dim", "hidden_size", "d_model", "n_embd")

# By name, because torch.distributed must not be imported only to ask.
_TOUCHED = {
    "OptimizedModule": "compiled",
    "CheckpointWrapper": "wrapped for activation checkpointing",
    "OffloadWrapper": "wrapped for activation offloading",
    "FSDPModule": "sharded",
    "FullyShardedDataParallel": "sharded",
    "DistributedDataParallel": "wrapped for data parallelism",
}


def find_blocks(model: nn.Module, blocks: nn.ModuleList | str | None = None) -> nn.ModuleList:
    """The stack of blocks whose outputs are the residual stream; raises `ConfigError` if there is none."""
    if isinstance(blocks, nn.ModuleList):
        return blocks
    for path in (blocks,) if blocks is not None else _PATHS:
        found: object = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList):
            return found
    _refuse_touched(model, "the model")
    where = f"model.{blocks}" if blocks is not None else " or ".join(f"model.{path}" for path in _PATHS)
    raise ConfigError(
        f"{type(model).__name__} has no nn.ModuleList of blocks at {where}; give the list or its path as `blocks`"
    )


def stream_dim(model: nn.Module, stack: nn.ModuleList) -> int | None:
    """D, or None where the model does not tell (then k is checked at the first forward)."""
    for owner in (*stack[:1], model, getattr(model, "config", None)):
        for name in _DIM_NAMES:
            dim = getattr(owner, name, None)
            if isinstance(dim, int):
                return dim
    # The norms that are direct children of a block are as wide as its stream; those inside attention are not.
    widths = {
        weight.shape[0]
        for block in stack[:1]
        for child in block.children()
        if "norm" in type(child).__name__.lower()
        for weight in child.parameters(recurse=False)
        if weight.dim() == 1
    }
    return widths.pop() if len(widths) == 1 else None


def check_untouched(model: nn.Module, stack: nn.ModuleList) -> None:
    """Raise `ConfigError` if something was put around the model that would not see the new class of a block."""
    _refuse_touched(model, "the model")
    for i, block in enumerate(stack):
        for name, module in block.named_modules():
            _refuse_touched(module, f"block {i}" + (f" ({name})" if name else ""))
        for method in ("forward", "residual_seam"):
            if method in block.__dict__:
                raise ConfigError(f"block {i} has a replaced {method}; undo that, then sparsify, then do it again")


def _refuse_touched(module: nn.Module, what: str) -> None:
    for cls in type(module).__mro__:
        if cls.__name__ in _TOUCHED:
            raise ConfigError(f"{what} is already {_TOUCHED[cls.__name__]}; call sparsify before that")
    if getattr(module, "_compiled_call_impl", None) is not None:
        raise ConfigError(f"{what} is already compiled; call sparsify before that")
    if any("DTensor" in (cls.__name__ for cls in type(p).__mro__) for p in module.parameters(recurse=False)):
        raise ConfigError(f"{what} is already sharded (DTensor parameters); call sparsify before that")
