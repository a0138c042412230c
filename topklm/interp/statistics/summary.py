"""A bundle as a table: what its layers are like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from topklm.bundles import Bundle

if TYPE_CHECKING:
    from rich.table import Table


def summary_table(bundle: Bundle) -> Table:
    """One row a layer: density (share of tokens in which a neuron fires, mean over neurons), L0 (neurons that fire in a
    token), share of neurons that never fire, mean and largest activation, near misses per token."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    meta = bundle.meta
    alpha = "" if meta.model.alpha is None else f", alpha {meta.model.alpha:g}"
    title = f"{bundle.path}\n{bundle.n_tokens:,} tokens of {len(bundle.types):,} types, {meta.reading.site}{alpha}"
    columns = ("layer", "read as", "density", "L0", "silent", "mean", "max", "margin", "near misses")
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "read as" else "right", no_wrap=True)
    for number in bundle.layers:
        layer = bundle.layer(number)
        stats, n = layer.stats, max(bundle.n_tokens, 1)
        margin = near = "-"
        if stats.margin_count is not None and stats.margin_sum is not None and stats.near_misses is not None:
            margin = f"{stats.margin_sum[0] / stats.margin_count[0]:.3g}" if stats.margin_count[0] else "-"
            near = f"{stats.near_misses.sum() / n:.2f}"
        table.add_row(
            str(number),
            layer.kind,
            f"{stats.fired.mean() / n:.2%}",
            f"{stats.fired.sum() / n:.1f}",
            f"{np.mean(stats.fired == 0):.2%}",
            f"{stats.sum.mean() / n:.4g}",
            f"{stats.maximum.max():.4g}",
            margin,
            near,
        )
    return table
