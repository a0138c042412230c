"""What a neuron writes to the logits by itself: its coordinate, carried to the end by the residual stream.

A coordinate y_i after layer l is added to by every later block and cut by every later TopK layer, which keeps it, if it
is selected and positive, and else makes it 0 (alpha times it while annealing). So its direct part in the last stream is
y_i s, where s is the product of these factors, and in the logit of token v y_i s g_i W_vi / rms, with g the gain of the
final norm, W the unembedding and rms the root mean square of that token's last stream. What later blocks read from it
on the way is not in it. A logit's level means nothing, so the mean over v is taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topklm.interp.ablation.losses import Reader
from topklm.interp.neurons import Neuron
from topklm.interp.statistics.tap import tap


@dataclass(frozen=True, kw_only=True)
class Direct:
    """The direct logit effect of one neuron, over the tokens in which it fired (y > 0)."""

    fired: int
    """Tokens."""
    survival: float
    """Mean of s over them: in pure TopK the share in which the coordinate reaches the end; NaN if it never fired."""
    scale: float
    """Mean of y s / rms, in units of the final norm's output before its gain."""
    logits: np.ndarray
    """float32 [V]: the mean effect on each logit, in nats, centred."""


def direct_effects(
    reader: Reader, starts: Sequence[int], neurons: Sequence[Neuron], advance: Callable[[int], None] | None = None
) -> dict[Neuron, Direct]:
    """The direct effects of some neurons over some windows."""
    model = reader.model
    n_layers, eps = len(model.layers), model.norm.eps
    columns = sorted({neuron.index for neuron in neurons})
    place = {index: i for i, index in enumerate(columns)}
    sums = {neuron: np.zeros(3) for neuron in neurons}  # fired, s, y s / rms
    kept: list[tuple[Tensor, Tensor | None]] = []
    rms: list[Tensor] = []

    def see(layer: int, output: Tensor, pre: Tensor | None, activation: object) -> None:
        y = output[..., columns].double()
        factor = None
        if pre is not None:
            x = pre[..., columns].double()
            factor = torch.where(x == 0, 0.0, y / torch.where(x == 0, 1.0, x))
        kept.append((y, factor))
        if layer == n_layers - 1:
            rms.append(output.double().square().mean(-1).add(eps).sqrt())

    with tap(model, range(n_layers), see) as forward:
        for _, tokens, ids in reader.batches(starts):
            kept.clear()
            rms.clear()
            forward(tokens, ids)
            survives = torch.ones_like(kept[-1][0])  # [B, T, n] from the layer below the last one on down
            for layer in reversed(range(n_layers)):
                y, factor = kept[layer]
                for neuron in neurons:
                    if neuron.layer == layer:
                        i = place[neuron.index]
                        on = y[..., i] > 0
                        s = survives[..., i][on]
                        written = y[..., i][on] * s / rms[0][on]
                        sums[neuron] += [float(on.sum()), float(s.sum()), float(written.sum())]
                if factor is not None:
                    survives = survives * factor
            if advance is not None:
                advance(tokens.numel())
    found = {}
    for neuron, (fired, survived, reached) in ((neuron, each.tolist()) for neuron, each in sums.items()):
        column = model.head_weight[:, neuron.index].detach().float().cpu().numpy()
        gain = float(model.norm.weight.detach()[neuron.index])
        scale = reached / fired if fired else float("nan")
        found[neuron] = Direct(
            fired=int(fired), survival=survived / fired if fired else float("nan"), scale=scale,
            logits=(column - column.mean()) * gain * scale,
        )  # fmt: skip
    return found
