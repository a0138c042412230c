"""What a collection needs, said before it starts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from topklm.bundles import Meta
from topklm.interp.statistics.layer_plan import LayerPlan, layer_bytes
from topklm.interp.statistics.windows import WindowPlan
from topklm.ranks import Ranks
from topklm.sparsity.registry import activation_class


def available_bytes(device: torch.device) -> int:
    """Memory that is free now: of the GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 << 30  # not Linux


def plan_lines(
    meta: Meta,
    windows: WindowPlan,
    plans: Sequence[LayerPlan],
    groups: Sequence[Sequence[int]],
    counts: np.ndarray,
    ranks: Ranks,
    path: Path,
) -> Iterator[str]:
    """What will be done, in words."""
    corpus = meta.corpus
    sources = ", ".join(f"{part.source}/{part.split} ({part.n_tokens:,} tokens)" for part in corpus.parts)
    yield f"{meta.n_tokens:,} tokens in {meta.n_windows:,} windows of {corpus.context}: {corpus.choice} of {sources}"
    if windows.n_left_out:
        yield f"{windows.n_left_out:,} tokens at the ends of sources fill no window and are left out"
    n_types = int(np.count_nonzero(counts))
    alpha = "dense model" if meta.model.alpha is None else f"alpha {meta.model.alpha:g}"
    kinds = list(meta.layers.values())
    yield (
        f"{meta.model.run} step {meta.model.step}, {alpha}, {meta.model.init} weights, site {meta.reading.site}: "
        f"{kinds.count('topk')} TopK and {kinds.count('dense')} dense readings of {meta.model.dim:,} neurons"
    )
    need = [sum(layer_bytes(plans[i], meta.model.dim, n_types, meta.settings) for i in group) for group in groups]
    yield (
        f"tables: {n_types:,} token types, {max(need) / 1e9:.2f} GB per rank in {len(groups)} "
        f"pass{'es' * (len(groups) > 1)} over each part, {_n(len(windows.parts), 'part')}, {_n(ranks.size, 'rank')}"
    )
    free = shutil.disk_usage(next(parent for parent in path.absolute().parents if parent.exists())).free
    need_disk = disk_bytes(meta, windows, plans, n_types)
    yield f"disk: at most {need_disk / 1e9:.2f} GB in {path.parent}, where {free / 1e9:.1f} GB are free"


def disk_bytes(meta: Meta, windows: WindowPlan, plans: Sequence[LayerPlan], n_types: int) -> int:
    """An upper bound of what the bundle and its parts take on disk, and of the work in between."""
    total = 0
    sizes = [part.n_tokens for part in meta.parts] or [0]
    for layer in map(int, meta.layers):
        plan, dim = plans[layer], meta.model.dim
        rest = layer_bytes(plan, dim, 0, meta.settings)
        # A part has no more types than tokens, and a TopK layer no more entries than it keeps of each token.
        for n_tokens in (*sizes, meta.n_tokens):
            table = min(n_types, n_tokens) * dim * 8
            if plan.kind == "topk":
                table = min(table, n_tokens * most_kept(plan, meta.model.topk or {}, dim) * 12)
            total += plan.n_tables(meta.settings) * table + rest
    return total


def most_kept(plan: LayerPlan, topk: dict[str, Any], dim: int) -> int:
    """Entries of one token that are not 0, at most: D where k is a mean, is counted per group, or does nothing."""
    if plan.cut is not None:
        return plan.cut.k
    cls = activation_class(topk.get("activation") or "topk")
    counts = cls.exact and cls.uses_k and not (topk.get("options") or {}).get("groups")
    return max(topk.get("k_per_layer") or [int(topk.get("k") or dim)]) if counts else dim


def _n(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
