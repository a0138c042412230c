"""How each layer is read, and which layers fit into memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from topklm.bundles import Settings
from topklm.bundles.exponent import N_CODES, STRATA
from topklm.errors import ConfigError, Problem
from topklm.interp.statistics.reading import ReadTopK
from topklm.sparsity import TopKConfig
from topklm.sparsity.registry import activation_class


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """How one layer is read."""

    kind: Literal["topk", "dense"]
    """topk: zero but for a few entries."""
    selects: bool
    """Whether there is a selection: margins, near misses, L0."""
    signed: bool
    """Whether negative activations are possible."""
    cut: ReadTopK | None = None
    """Read through this."""

    def n_tables(self, settings: Settings) -> int:
        """Tables [R, N]."""
        return 1 + (settings.positive_part and self.signed) + settings.token_fired


def plan_layers(
    n_layers: int, topk: TopKConfig | None, alpha: float | None, site: str, cut: ReadTopK | None
) -> list[LayerPlan]:
    """Of every layer. Raises `ConfigError` for a cut that does not go with the model."""
    n_sparse = n_layers - topk.n_dense_tail if topk is not None else 0
    if cut is not None and n_sparse > 0:
        raise ConfigError([Problem("read_topk", "is for dense models; this one has TopK layers of its own")])
    if cut is not None and cut.n_dense_tail > n_layers:
        problem = Problem("read_topk.n_dense_tail", f"{cut.n_dense_tail} is more than the {n_layers} layers")
        raise ConfigError([problem])
    plans = []
    for layer in range(n_layers):
        if topk is not None and layer < n_sparse and activation_class(topk.activation).cuts:
            exact = site == "post" and not alpha
            signed = not exact or activation_class(topk.activation).signed(topk)
            plans.append(LayerPlan(kind="topk" if exact else "dense", selects=True, signed=signed))
        elif cut is not None and layer < n_layers - cut.n_dense_tail:
            plans.append(LayerPlan(kind="topk", selects=True, signed=not cut.relu, cut=cut))
        else:
            plans.append(LayerPlan(kind="dense", selects=False, signed=True))
    return plans


def layer_bytes(plan: LayerPlan, width: int, n_types: int, settings: Settings) -> int:
    """Memory of one layer's accumulator."""
    tables = plan.n_tables(settings) * n_types * width * 8
    sketches = width * 24 * (settings.top_contexts + STRATA * settings.sample_contexts)
    return tables + sketches + width * (N_CODES * 12 + 100)


def group_layers(
    layers: Sequence[int], plans: Sequence[LayerPlan], width: int, n_types: int, settings: Settings, budget: int
) -> list[list[int]]:
    """`layers` in groups that fit into `budget` bytes together with what writing the largest of them needs.

    One group is one pass over the corpus. Raises `ConfigError` if one layer alone does not fit.
    """
    groups: list[list[int]] = [[]]
    used = 0
    for layer in layers:
        need = layer_bytes(plans[layer], width, n_types, settings)
        if 2 * need > budget:
            raise ConfigError(
                [
                    Problem(
                        "memory_gb",
                        f"layer {layer} alone needs {2 * need / 1e9:.1f} GB to count and to write ({n_types:,} token "
                        f"types x {width:,} neurons), {budget / 1e9:.1f} are given; raise it, or take fewer tokens",
                    )
                ]
            )
        if used + 2 * need > budget:
            groups.append([])
            used = 0
        groups[-1].append(layer)
        used += need
    return groups
