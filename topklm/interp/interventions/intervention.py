"""What is done to which neurons: the definition, checked against a model before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor, nn

from topklm.errors import Problem
from topklm.interp.interventions.seams import Stack, stack_of

Site = Literal["pre", "post"]
Op = Literal["add", "set", "scale", "zero", "mean", "resample"]
_WITH_VALUE = ("add", "set", "scale", "mean")


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervention:
    """A change of some neurons (coordinates of the residual stream after a block) at some positions.

    With x the stream that enters a block's activation A (TopK), [B, T, D], and y = A(x) what leaves it: site "pre"
    changes x, so that the selection is made anew; site "post" changes y, after the cut. In a dense layer there is no
    activation, x = y is the block's output and both sites are the same.
    """

    layer: int | None = None
    """The layer, from 0. Either this or `layers`."""
    layers: Sequence[int] | str | None = None
    """Several layers, from 0; or "14:", all from layer 14 on."""
    neurons: Sequence[int]
    """Indices of the neurons, from 0; the same in each of the layers."""
    site: Site = "post"
    """pre: before the cut, the input of TopK; post: after it, what the next block reads."""
    op: Op
    """Of a neuron's value u: add: u + value; set: value; scale: u * value; zero: 0; mean: value, which is meant to be
    the neuron's mean at this site (`bundle_means`); resample: what the neuron is at another token, see `value`."""
    value: float | Tensor | None = None
    """One number, or one per neuron, [n]; a tensor may require gradients. None for zero. For resample None: the
    positions that are changed exchange their values, by a permutation over all rows and positions of the forward pass
    drawn from `seed`, the same for all neurons and layers; or the values themselves, [B, T, n] by row and position."""
    refill: bool = False
    """Only for a zero after the cut: whether the selection is made without the neurons, so that those next in rank
    take their places ((k+1)-th); otherwise the places stay empty."""
    positions: str | Tensor = "all"
    """all; prompt: before the first generated token; generated: from it on; last: whose logits choose the next token,
    which is the last position of a forward pass, and in a generation the prompt's last and all generated ones; or a
    mask, bool [B, T], by row (B = 1: all rows) and absolute position; positions beyond T are not changed."""
    seed: int = 0
    """Of the permutation of resample."""

    def problems(self, model: nn.Module) -> list[Problem]:
        """Everything that is wrong with it, alone and for `model`."""
        return list(self._problems(stack_of(model)))

    def in_layers(self, n_layers: int) -> list[int]:
        """The layers that it acts in, of a model of `n_layers`, ascending."""
        if self.layer is not None:
            return [self.layer]
        if isinstance(self.layers, str):
            return list(range(int(self.layers.removesuffix(":")), n_layers))
        return sorted(self.layers or ())

    def describe(self) -> str:
        """In one line, for records and titles."""
        where = f"layer {self.layer}" if self.layer is not None else f"layers {_listed(self.layers)}"
        shown = ""
        if self.op in _WITH_VALUE:
            one = isinstance(self.value, int | float)
            shown = f" {self.value:g}" if one else " (a value per neuron)"
        refill = f", {'with' if self.refill else 'without'} refill" if (self.op, self.site) == ("zero", "post") else ""
        positions = self.positions if isinstance(self.positions, str) else "masked"
        return f"{self.site} {self.op}{shown}{refill}: {where}, neurons {_listed(self.neurons)}, {positions} positions"

    def _problems(self, stack: Stack) -> Iterator[Problem]:
        yield from self._layer_problems(stack)
        yield from self._neuron_problems(stack.dim)
        for name, known in (("site", ("pre", "post")), ("op", (*_WITH_VALUE, "zero", "resample"))):
            if getattr(self, name) not in known:
                yield Problem(name, f"{getattr(self, name)!r} is not one of {', '.join(known)}")
        yield from self._value_problems()
        yield from self._position_problems()
        if self.refill and (self.op, self.site) != ("zero", "post"):
            yield Problem(
                "refill",
                f"means nothing for {self.site} {self.op}: only a zero after the cut (site post) leaves a place empty; "
                "before the cut the selection is made anew in any case",
            )

    def _layer_problems(self, stack: Stack) -> Iterator[Problem]:
        n = len(stack.blocks)
        if (self.layer is None) == (self.layers is None):
            yield Problem("layer", "give either layer (one) or layers (several, or 'l:' for all from l on)")
            return
        key = "layer" if self.layers is None else "layers"
        if isinstance(self.layers, str) and not (self.layers.endswith(":") and self.layers[:-1].isdecimal()):
            yield Problem(key, f"{self.layers!r} is not of the form 'l:', all layers from l on")
            return
        layers = self.in_layers(n)
        if not all(map(_is_whole, layers)):
            yield Problem(key, f"{layers} are not whole numbers")
            return
        if not layers:
            yield Problem(key, f"{self.layers!r} names no layer; there are 0 ... {n - 1}")
        if len(set(layers)) < len(layers):
            yield Problem(key, f"{layers} names a layer twice")
        outside = [layer for layer in layers if not 0 <= layer < n]
        if outside:
            yield Problem(key, f"{_listed(outside)}: not in 0 ... {n - 1} (counted from 0)")
        dense = [layer for layer in layers if 0 <= layer < n and stack.is_dense(layer)]
        if self.refill and dense:
            yield Problem("refill", f"layer {_listed(dense)} is dense: nothing is selected there, so nothing can enter")
        others = [layer for layer in layers if 0 <= layer < n and layer not in dense and not stack.has_places(layer)]
        if self.refill and others:
            told = (
                f"layer {_listed(others)} selects no fixed number of neurons (a threshold does not): no place is left"
            )
            yield Problem("refill", told)

    def _neuron_problems(self, dim: int | None) -> Iterator[Problem]:
        if not self.neurons:
            yield Problem("neurons", "is empty; name at least one")
        elif not all(map(_is_whole, self.neurons)):
            yield Problem("neurons", f"{list(self.neurons)} are not whole numbers")
        else:
            if len(set(self.neurons)) < len(self.neurons):
                yield Problem("neurons", f"{_listed(self.neurons)} names a neuron twice")
            outside = [i for i in self.neurons if i < 0 or (dim is not None and i >= dim)]
            if outside:
                bound = "" if dim is None else f" ... {dim - 1}"
                yield Problem("neurons", f"{_listed(outside)}: not in 0{bound} (counted from 0)")

    def _value_problems(self) -> Iterator[Problem]:
        value, n = self.value, len(self.neurons)
        if self.op in _WITH_VALUE and value is None:
            yield Problem("value", f"{self.op} needs a number, or one per neuron")
        elif self.op == "zero" and value is not None:
            yield Problem("value", "zero takes none; set writes another number")
        elif isinstance(value, Tensor):
            wanted = (3, f"[B, T, {n}]") if self.op == "resample" else (1, f"[{n}]")
            if value.dim() != wanted[0] or value.shape[-1] != n or not value.is_floating_point():
                kind = f"{value.dtype} {list(value.shape)}".removeprefix("torch.")
                yield Problem("value", f"a tensor for {n} neurons is floating point {wanted[1]}, not {kind}")
            elif not bool(value.isfinite().all()):
                yield Problem("value", "holds NaN or infinity")
        elif value is not None and self.op == "resample":
            yield Problem(
                "value", f"resample takes a tensor [B, T, {n}] or nothing, not {value!r}; set writes a number"
            )
        elif value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            yield Problem("value", f"{value!r} is not a number or a tensor")
        elif value is not None and not math.isfinite(value):
            yield Problem("value", f"{value} is not finite")

    def _position_problems(self) -> Iterator[Problem]:
        if isinstance(self.positions, Tensor):
            if self.positions.dtype != torch.bool or self.positions.dim() != 2:
                shape = list(self.positions.shape)
                yield Problem("positions", f"a mask is bool [B, T], not {self.positions.dtype} {shape}")
        elif self.positions not in ("all", "last", "prompt", "generated"):
            yield Problem("positions", f"{self.positions!r} is not one of all, last, prompt, generated, or a mask")


def _is_whole(number: object) -> bool:
    """Of any integer type, NumPy's too."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def _listed(numbers: Sequence[int] | str | None) -> str:
    if isinstance(numbers, str):
        return numbers
    shown = [str(number) for number in numbers or ()]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:6], f"... ({len(shown)})"])
