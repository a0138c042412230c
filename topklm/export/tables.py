"""A comparison as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from topklm.export.parity import Parity, PrecisionParity
from topklm.optional import require


def rich_tables(parity: Parity) -> Iterator[Any]:
    """Figures of every precision, and a row for each sparse block."""
    table = require("rich.table", "topklm").Table
    whole = table("", *(p.precision for p in parity.precisions), title=f"{parity.a} and {parity.b}, {parity.text}")
    for name, *values in parity_rows(parity.precisions):
        whole.add_row(name, *values)
    yield whole
    if not any(p.layers for p in parity.precisions):
        return
    by_layer = table("block", "", "select differently", "fresh", "widest gap", "stream", "L0", title="sparse blocks")
    for number in range(len(parity.precisions[0].layers)):
        for p in parity.precisions:
            layer = p.layers[number]
            by_layer.add_row(
                str(number), p.precision, str(layer.flips), str(layer.fresh_flips), f"{layer.gap:.1e}",
                f"{layer.stream:.1e}", "-" if layer.l0_mean is None else f"{layer.l0_mean:.1f}, {layer.l0_max}",
            )  # fmt: skip
    yield by_layer


def parity_rows(precisions: list[PrecisionParity]) -> Iterator[tuple[str, ...]]:
    """(what, its figure in each precision): for the terminal and the model card."""

    def row(name: str, show: Any) -> tuple[str, ...]:
        return (name, *(show(p) for p in precisions))

    yield row("tokens", lambda p: f"{p.tokens:,}")
    yield row("logits: largest difference", lambda p: f"{p.logit_max:.2g}")
    yield row("logits: mean difference", lambda p: f"{p.logit_mean:.2g}")
    yield row("logits: standard deviation", lambda p: f"{p.logit_std:.2g}")
    yield row("same next token", lambda p: f"{p.agreement:.2%}")
    yield row("loss of the first (nats per token)", lambda p: f"{p.loss_a:.6f}")
    yield row("loss of the second", lambda p: f"{p.loss_b:.6f}")
    if any(p.layers for p in precisions):
        yield row("rows that select differently", lambda p: f"{p.flips} of {p.rows}")
        yield row("of these by themselves (fresh)", lambda p: f"{p.fresh_flips}")
    if any(p.told_logit_max is not None for p in precisions):
        yield row("both select the same: largest difference", lambda p: f"{p.told_logit_max:.2g}")
        yield row("both select the same: same next token", lambda p: f"{p.told_agreement:.2%}")
        yield row("both select the same: loss of the second", lambda p: f"{p.told_loss_b:.6f}")
