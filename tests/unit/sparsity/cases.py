"""Every activation with settings that fit a stream of 32 entries, and its selection for one token in plain Python."""

from __future__ import annotations

import math
import statistics

import torch

from topklm.sparsity import TopKConfig
from topklm.sparsity.activation import Activation
from topklm.sparsity.registry import build_activation

DIM = 32
CASES: dict[str, TopKConfig] = {
    "topk": TopKConfig(k=6),
    "abstopk": TopKConfig(activation="abstopk", k=6, anneal_form="identity"),
    "grouptopk": TopKConfig(activation="grouptopk", k=2, options={"groups": 4}),
    "normtopk": TopKConfig(activation="normtopk", k=6),
    "stat_topk": TopKConfig(activation="stat_topk", k=6),
    "batchtopk": TopKConfig(activation="batchtopk", k=6),
    "jumprelu": TopKConfig(activation="jumprelu", k=6, options={"lr": 0.03, "bandwidth": 0.2}),
    "relu": TopKConfig(activation="relu"),
    "identity": TopKConfig(activation="identity", anneal_form="identity", schedule="none"),
}
EXACT = {"topk": 6, "abstopk": 6, "grouptopk": 8, "normtopk": 6, "identity": DIM}


def make(cfg: TopKConfig, dim: int = DIM, layer: int = 0) -> Activation:
    """An activation whose state is not what it starts with."""
    activation = build_activation(cfg, dim, layer)
    generator = torch.Generator().manual_seed(5)
    for tensor in activation.tensors().values():
        tensor.data = torch.rand(tensor.shape, generator=generator) + 0.25
    return activation


def largest(scores: list[float], k: int) -> set[int]:
    """By Python's own sort, which is stable: NaN first, then by value, then by index."""
    order = sorted(range(len(scores)), key=lambda i: (0, 0.0) if scores[i] != scores[i] else (1, -scores[i]))
    return set(order[:k])


def reference(cfg: TopKConfig, activation: Activation, x: list[float]) -> set[int]:
    """The entries of one token that are selected, by the definitions of docs/activations.md."""
    name, everything = cfg.activation, set(range(len(x)))
    state = {key: tensor.double().tolist() for key, tensor in activation.tensors().items()}
    if name == "topk":
        return largest(x, cfg.k)
    if name == "abstopk":
        return largest([abs(v) for v in x], cfg.k)
    if name == "grouptopk":
        size = len(x) // 4
        return {g * size + i for g in range(4) for i in largest(x[g * size : (g + 1) * size], cfg.k)}
    if name == "normtopk":
        return largest([v * w for v, w in zip(x, state["reader_norm"], strict=True)], cfg.k)
    if name == "stat_topk":
        z = statistics.NormalDist().inv_cdf(1 - cfg.k / len(x))
        if not all(map(math.isfinite, x)):
            return everything
        threshold = statistics.fmean(x) + z * statistics.pstdev(x)
        return {i for i, v in enumerate(x) if v > threshold}
    if name == "batchtopk":
        return {i for i, v in enumerate(x) if v != v or v > state["threshold"]}
    if name == "jumprelu":
        theta = [t * state["scale"] for t in state["threshold"]]
        return {i for i, (v, t) in enumerate(zip(x, theta, strict=True)) if v != v or v > t}
    return {i for i, v in enumerate(x) if v != v or v > 0} if name == "relu" else everything
