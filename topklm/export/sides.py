"""The two sides of a comparison behind one interface: logits, and what the sparse blocks select.

topklm runs its own checkpoints and whatever `load_model` reads; transformers runs what was made for it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from topklm.checkpoint.huggingface import find_huggingface, read_hf
from topklm.errors import CheckpointError, ConfigError, Problem
from topklm.export.auto_classes import modeling
from topklm.model import ModelConfig, Transformer
from topklm.model.transformer import rotary_table
from topklm.optional import require
from topklm.sparsity.patch import activations_of, sparse_states

if TYPE_CHECKING:
    from topklm.sparsity.activation import Activation


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What one side computes for tokens [B, T]."""

    logits: Tensor
    """[B, T, V]."""
    streams: list[Tensor]
    """Per sparse block the residual stream before the cut, [B, T, D]."""
    selected: list[Tensor]
    """Per sparse block the entries that this side selects of its own stream, bool [B, T, D]."""
    l0: list[Tensor]
    """Per sparse block the entries that are not zero after the cut, int64 [B, T]; empty where it is not looked at."""
    exact: bool = True
    """Whether every token keeps the same number of entries."""
    by_value: bool = True
    """Whether those are the largest by value."""


class Side(Protocol):
    """One form of a model."""

    what: str
    """Who runs it, for the report."""
    can_be_told: bool
    """Whether it can be told what to select."""

    def to(self, dtype: torch.dtype, device: torch.device) -> None: ...

    def trace(self, tokens: Tensor, selected: Sequence[Tensor] | None = None) -> Trace:
        """One forward pass; with `selected` each sparse block keeps these entries instead of its own choice."""


class NativeSide:
    """Run by topklm."""

    what = "topklm"
    can_be_told = False

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self._seen: list[tuple[Tensor, Tensor]] = []

    def to(self, dtype: torch.dtype, device: torch.device) -> None:
        self.model.to(device=device, dtype=dtype)

    @torch.no_grad()
    def trace(self, tokens: Tensor, selected: Sequence[Tensor] | None = None) -> Trace:
        states = sparse_states(self.model)
        self._seen = []
        for state in states:
            state.recorder = self
        try:
            logits = self.model(tokens)
        finally:
            for state in states:
                state.recorder = None
        streams, own = ([pair[i] for pair in self._seen] for i in (0, 1))
        activations = activations_of(self.model)
        exact, by_value = (all(getattr(a, name) for a in activations) for name in ("exact", "by_value"))
        return Trace(logits=logits, streams=streams, selected=own, l0=[], exact=exact, by_value=by_value)

    def see(self, block: torch.nn.Module, activation: Activation, x: Tensor) -> None:
        """Called by each sparse block, in their order."""
        self._seen.append((x, activation.selected_now(x)))


class HuggingFaceSide:
    """Run by transformers.

    Its Llama computes norms and rotary angles in fp32 whatever the weights are. In fp64 both are replaced by the same
    in fp64, so that there rounding cannot hide or make a difference; in fp32 everything is as it comes.
    """

    what = "transformers"
    can_be_told = True

    def __init__(self, model: Any, config: ModelConfig, stored_dtype: torch.dtype = torch.float32) -> None:
        self.model = model.eval()
        self.config = config
        self.stored_dtype = stored_dtype
        """Of the weights in the directory."""
        self._cuts = [layer.activation for layer in model.model.layers if hasattr(layer, "activation")]

    def to(self, dtype: torch.dtype, device: torch.device) -> None:
        self.model.to(device=device, dtype=dtype)
        for module in self.model.modules():
            kind = type(module).__name__
            if kind.endswith(("RMSNorm", "RotaryEmbedding")):
                module.__dict__.pop("forward", None)
                if dtype == torch.float64:
                    wide = _wide_norm if kind.endswith("RMSNorm") else _wide_rotary
                    module.forward = functools.partial(wide, module, self.config)

    @torch.no_grad()
    def trace(self, tokens: Tensor, selected: Sequence[Tensor] | None = None) -> Trace:
        streams: list[Tensor] = []
        l0: list[Tensor] = []

        def hook(cut: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            if selected is not None:
                output = cut.cut(inputs[0], selected[len(streams)])
            streams.append(inputs[0])
            l0.append((output != 0).sum(-1))
            return output

        with contextlib.ExitStack() as hooks:
            for cut in self._cuts:
                hooks.callback(cut.register_forward_hook(hook).remove)
            logits = self.model(input_ids=tokens, use_cache=False).logits
        own = [cut.selected(x) for x, cut in zip(streams, self._cuts, strict=True)]
        return Trace(logits=logits, streams=streams, selected=own, l0=l0)


def _wide_norm(module: Any, config: ModelConfig, x: Tensor) -> Tensor:
    return F.rms_norm(x, module.weight.shape, module.weight, config.norm_eps)


def _wide_rotary(module: Any, config: ModelConfig, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    length = int(position_ids.max()) + 1
    table = rotary_table(length, config.head_width, config.rope_theta, config.rope_scaling, x)
    cos, sin = (half[position_ids] for half in table)  # [B, T, d / 2]
    return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


def is_huggingface(path: Path) -> bool:
    """Whether `path` is a model directory of Hugging Face (not a GGUF file, which topklm reads)."""
    return path.is_dir() and find_huggingface(path) == path


def open_huggingface(path: Path, *, trust_remote_code: bool = False) -> HuggingFaceSide:
    """Load a directory with transformers. Raises `CheckpointError` if that fails or weights are missing.

    The code in it is not run but topklm's own if the two are the same; other code raises `ConfigError` unless it is
    trusted.
    """
    transformers = require("transformers", "topklm[hf]")
    hf = read_hf(path)
    with _quiet(transformers):
        try:
            loader = _own_or_trusted(path, trust_remote_code) if hf.topk else transformers.AutoModelForCausalLM
            model, info = loader.from_pretrained(str(path), output_loading_info=True, local_files_only=True)
        except ConfigError:
            raise
        except Exception as error:  # any kind, of a file from elsewhere
            raise CheckpointError(f"transformers cannot load {path}: {error}") from error
    if wrong := [f"{what}: {', '.join(map(str, names))}" for what, names in info.items() if names]:
        raise CheckpointError(f"transformers loads {path} with {'; '.join(wrong)}")
    stored = str(hf.raw.get("dtype") or hf.raw.get("torch_dtype") or "float32")
    return HuggingFaceSide(model, hf.model, getattr(torch, stored.removeprefix("torch.")))


def _own_or_trusted(path: Path, trust_remote_code: bool) -> Any:
    """The class of a TopK model: ours if the code in the directory is ours, else the one that this code defines."""
    own = Path(modeling().__file__)
    theirs = path / own.name
    if not theirs.is_file():
        raise ConfigError(
            [Problem("b", f"{path} has a section topk but no {own.name}: transformers runs it as a dense model, "
                          "without a word; write it with python -m apps.export to=hf")]
        )  # fmt: skip
    if theirs.read_bytes() == own.read_bytes():
        return modeling().TopKLlamaForCausalLM
    if not trust_remote_code:
        raise ConfigError(
            [Problem("b", f"{theirs} is not the file of this version of topklm; export again, or if you trust the code "
                          "in it, trust_remote_code=true")]
        )  # fmt: skip
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    # By its own name, in whose place no registered class can come.
    return get_class_from_dynamic_module(f"{own.stem}.TopKLlamaForCausalLM", str(path))


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the progress bars and advice of transformers."""
    logs = transformers.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
