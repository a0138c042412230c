"""Gradient times activation: the first-order estimate of every neuron's removal, with one backward pass for all.

With y_i the activation of a neuron after the cut and L the summed loss, the change of L for y_i -> c at all positions
is about sum_t (c - y_i) dL/dy_i: c = 0 for zero (without refill), the neuron's mean for mean. The gradient goes through
the selections of later layers as they are, so a neuron that enters or leaves there is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topklm.interp.ablation.losses import Reader
from topklm.model import Transformer
from topklm.sparsity import activation_tensors, true_gradients


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Sums over the tokens of some windows, in nats; float64 [L, N]."""

    weighted: np.ndarray
    """sum of y dL/dy."""
    gradient: np.ndarray
    """sum of dL/dy."""
    n_tokens: int
    """Predicted tokens."""

    def to(self, value: np.ndarray | float) -> np.ndarray:
        """[L, N] estimate of the change of the mean loss, in nats a token, if y becomes `value` ([L, N]) everywhere."""
        return (value * self.gradient - self.weighted) / self.n_tokens


def attribute(reader: Reader, starts: Sequence[int], advance: Callable[[int], None] | None = None) -> Attribution:
    """The attribution of all neurons of all layers over some windows."""
    model = reader.model
    n_layers, width = len(model.layers), model.config.dim
    weighted, gradient = np.zeros((n_layers, width)), np.zeros((n_layers, width))
    n_tokens = 0
    for _, tokens, ids in reader.batches(starts):
        with _streams(model) as streams:
            inputs = None if ids is None else ids[:, :-1]
            model(tokens[:, :-1], tokens[:, 1:], document_ids=inputs, reduction="sum").backward()
        for layer, y in enumerate(streams):
            assert y.grad is not None
            slope, value = y.grad.double(), y.detach().double()
            weighted[layer] += (slope * value).sum((0, 1)).cpu().numpy()
            gradient[layer] += slope.sum((0, 1)).cpu().numpy()
        n_tokens += tokens[:, 1:].numel()
        if advance is not None:
            advance(tokens.numel())
    return Attribution(weighted=weighted, gradient=gradient, n_tokens=n_tokens)


@contextmanager
def _streams(model: Transformer) -> Iterator[list[Tensor]]:
    """The blocks' outputs of the forward pass inside, which keep their gradients; parameters get none."""
    found: list[Tensor] = []

    def hook(block: torch.nn.Module, args: object, output: Tensor) -> Tensor:
        # The first block's output depends on parameters only, which need no gradient: it is where the graph begins.
        output = output if output.requires_grad else output.detach().requires_grad_()
        output.retain_grad()
        found.append(output)
        return output

    every = [*model.parameters(), *activation_tensors(model).values()]  # thresholds are no parameters of the model
    wanted = [(parameter, parameter.requires_grad) for parameter in every]
    handles = [block.register_forward_hook(hook) for block in model.layers]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        with torch.enable_grad(), true_gradients(model):
            yield found
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required in wanted:
            parameter.requires_grad_(required)
