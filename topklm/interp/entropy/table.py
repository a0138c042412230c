"""Measured entropies as tables on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def layers_table(found: dict[str, Any]) -> Table:
    """One row a layer of what `entropy.json` says, means over the neurons: token entropy and its exponential, share of
    variance that the token explains, semantic entropy of the neurons and of random sets, coherence, and the share of
    neurons whose coherence has a false discovery rate below 5 %."""
    model, settings = found["model"], found["settings"]
    cut = found["reading"]["read_topk"]
    told = [
        f"step {model['step']}" if model["init"] == "checkpoint" else "initial weights",
        *([] if model["alpha"] is None else [f"alpha {model['alpha']:g}"]),
        *([] if cut is None else [f"read through top-{cut['k']}"]),
        f"{found['n_tokens']:,} tokens",
        f"{found['n_types']:,} types with at least {settings['min_count']}",
        f"preset {found['preset']}",
    ]
    table = _table(f"{model['run']}: {', '.join(told)} (H in nats, ± sd over neurons)")
    columns = ("layer", "kind", "silent", "token H", "exp H", "expl.", "sem.", "rand.", "cos", "q<.05", "cap")
    for column in columns:
        table.add_column(column, justify="left" if column == "kind" else "right", no_wrap=True)
    for row in found["layers"]:
        table.add_row(
            str(row["layer"]),
            row["kind"],
            f"{row['silent'] / row['neurons']:.0%}",
            _mean_sd(row, "token_entropy"),
            _number(row["effective_tokens_mean"], ",.0f"),
            _number(row["token_explained_corrected_mean"], ".2f"),
            _number(row["semantic_entropy_mean"], ".2f"),
            _number(row["semantic_entropy_random_mean"], ".2f"),
            _number(row["coherence_mean"], ".2f"),
            f"{row['coherent'] / row['neurons']:.0%}",
            str(row["capped"]),
        )
    return table


def convergence_table(found: dict[str, Any]) -> Table:
    """Mean token entropy of each layer at each corpus size."""
    rows = found["convergence"]
    sizes = sorted({row["tokens"] for row in rows})
    table = _table(
        "mean token entropy by corpus size, of the neurons that have one at every size; limit: extrapolated; "
        "split half: mean |difference| of two halves"
    )
    for column in ("layer", *(f"{size:,}" for size in sizes), "limit", "split half"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in sorted({row["layer"] for row in rows}):
        of_layer = [row for row in rows if row["layer"] == layer]
        values = [_number(row["token_entropy"], ".2f") for row in of_layer]
        last = of_layer[-1]
        table.add_row(str(layer), *values, _number(last["limit"], ".2f"), _number(last["split_half_error"], ".2f"))
    return table


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    return Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _mean_sd(row: dict[str, Any], name: str) -> str:
    mean, sd = row[f"{name}_mean"], row[f"{name}_sd"]
    return "-" if mean is None else f"{mean:.2f}" if sd is None else f"{mean:.2f} ± {sd:.2f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
