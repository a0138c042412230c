"""Tables of layers, neurons and bundles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from topklm.report.neurons.look import basis
from topklm.report.neurons.read import Measured
from topklm.report.neurons.series import newest
from topklm.report.neurons.tokens import top_tokens, visible
from topklm.report.table import Column, Table

ROWS = 10
"""Neurons in each of a model's tables."""
PIECES = 8
"""Token pieces shown of a neuron."""
LEAST_FIRED = 100
"""Neurons that fired on fewer tokens are not ranked: whatever fires once has an entropy of 0."""


NEURON_COLUMNS = (
    Column("layer", "layer"),
    Column("neuron", "neuron"),
    Column("kind", "reading"),
    Column("density", "density", "{:.3%}"),
    Column("token_entropy", "token entropy", "{:.2f}"),
    Column("effective_tokens", "effective tokens", "{:.1f}"),
    Column("semantic_entropy", "semantic entropy", "{:.2f}"),
    Column("coherence", "coherence", "{:.3f}"),
    Column("coherence_q", "q", "{:.2g}"),
    Column("label", "label"),
    Column("tokens", "top tokens"),
)
LAYER_COLUMNS = (
    Column("model", "model"),
    Column("step", "step", "{:,}"),
    Column("layer", "layer"),
    Column("kind", "reading"),
    Column("silent_share", "silent", "{:.1%}"),
    Column("token_entropy_mean", "token entropy", "{:.2f}"),
    Column("token_entropy_sd", "sd", "{:.2f}"),
    Column("effective_tokens_mean", "effective tokens", "{:,.0f}"),
    Column("token_explained_corrected_mean", "explained by token", "{:.2f}"),
    Column("semantic_entropy_mean", "semantic entropy", "{:.2f}"),
    Column("semantic_entropy_sd", "sd", "{:.2f}"),
    Column("semantic_entropy_random_mean", "of random sets", "{:.2f}"),
    Column("coherence_mean", "coherence", "{:.3f}"),
    Column("coherence_sd", "sd", "{:.3f}"),
)
BUNDLE_COLUMNS = (
    Column("model", "model"),
    Column("step", "step", "{:,}"),
    Column("alpha", "alpha", "{:.3g}"),
    Column("run", "run"),
    Column("bundle", "bundle"),
    Column("bundle_sha256", "bundle hash"),
    Column("checkpoint_sha256", "checkpoint hash"),
    Column("tokens", "tokens", "{:,}"),
    Column("types", "types", "{:,}"),
    Column("corpus", "corpus"),
    Column("context", "context"),
    Column("tokenizer", "tokenizer"),
    Column("preset", "preset"),
)


def layer_table(measured: Sequence[Measured]) -> Table:
    """Means and standard deviations of every layer, of each model's newest checkpoint and its controls."""
    rows = []
    for each in newest(measured):
        for row in each.by_layer.values():
            silent = row["silent"] / row["neurons"]
            rows.append({**row, "model": each.label, "step": each.step, "silent_share": silent})
    note = f"Entropies in nats, mean and standard deviation over neurons; {basis(measured[0])}."
    return Table("Layers", note, LAYER_COLUMNS, rows)


def bundle_table(measured: Sequence[Measured]) -> Table:
    """Where every number comes from: one row a bundle."""
    rows = []
    for each in measured:
        meta = each.bundle.meta
        rows.append({
            "model": each.label, "step": each.step, "alpha": each.alpha, "run": each.run,
            "bundle": str(each.bundle.path), "bundle_sha256": each.bundle.sha256[:12],
            "checkpoint_sha256": None if meta.model.sha256 is None else meta.model.sha256[:12],
            "tokens": each.bundle.n_tokens, "types": each.entropy["n_types"],
            "corpus": ", ".join(f"{p.source}/{p.split} {p.fingerprint[:12]}" for p in meta.corpus.parts),
            "context": meta.corpus.context, "tokenizer": meta.corpus.tokenizer_sha256[:12],
            "preset": each.entropy["preset"],
        })  # fmt: skip
    settings = ", ".join(f"{key} {value}" for key, value in measured[0].entropy["settings"].items())
    note = f"Settings of the entropies: {settings}; embedding {measured[0].entropy['embedding']}."
    return Table("Bundles", note, BUNDLE_COLUMNS, rows)


def neuron_tables(each: Measured, labelled: bool = False) -> list[Table]:
    """The most selective, most generic and most coherent neurons of one bundle, and its silent ones; `labelled`: with
    what they are called (`shown_label`)."""
    columns = each.columns
    fired = columns["density"] * each.bundle.n_tokens
    ranked = ~columns["silent"].astype(bool) & (fired >= LEAST_FIRED - 0.5)
    entropy, q, coherence = (columns[name] for name in ("token_entropy", "coherence_q", "coherence"))
    known = ranked & ~np.isnan(entropy)
    known_q = ranked & ~np.isnan(q)
    rare = int((~columns["silent"].astype(bool) & ~ranked).sum())
    among = f"of the neurons that fired on at least {LEAST_FIRED} tokens ({rare:,} fired on fewer)"
    picks = [
        ("Most selective", f"lowest token entropy {among}", known, (entropy,)),
        ("Most generic", f"highest token entropy {among}", known, (-entropy,)),
        ("Most coherent", f"lowest q (false discovery rate of the coherence), then highest coherence, {among}", known_q,
         (q, -coherence)),
    ]  # fmt: skip
    chosen = [(title, note, _first(keys, mask)) for title, note, mask, keys in picks]
    silent = np.flatnonzero(columns["silent"].astype(bool))
    every = sorted({int(i) for _, _, order in chosen for i in order})
    names = {i: (int(columns["layer"][i]), int(columns["neuron"][i])) for i in every}
    tokens = top_tokens(each.bundle, list(names.values()), PIECES, each.min_count)
    shown = [column for column in NEURON_COLUMNS if labelled or column.key != "label"]
    tables = [
        Table(title, f"{each.label}: {note}.", shown, [_row(each, int(i), tokens[names[int(i)]]) for i in order])
        for title, note, order in chosen
    ]
    return [*tables, _silent_table(each, silent)]


def shown_label(each: Measured, layer: int, neuron: int) -> str | None:
    """What a neuron is called: by a language model or a person if there is such a label, the newest one, with its
    score; else its class of words if that is significant, with its q. None: nothing."""
    mine = [label for (at, i, _), label in each.labels.items() if (at, i) == (layer, neuron)]
    for label in reversed([label for label in mine if label.source not in ("tokens", "wordnet")]):
        score = "" if label.score is None else f" {label.score:.2f}"
        return f"{visible(label.label)} ({visible(label.source)}{score})"
    for label in mine:
        if label.source == "wordnet" and label.significant:
            return visible(label.label) + ("" if label.q is None else f" (q {label.q:.2g})")
    return None


def _first(keys: Sequence[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Indices of the mask's first `ROWS` rows by the keys, the first key first; equal ones in the table's order."""
    rows = np.flatnonzero(mask)
    return rows[np.lexsort([key[rows] for key in reversed(keys)])][:ROWS]


def _row(each: Measured, i: int, tokens: list[str]) -> dict[str, Any]:
    row = {column.key: each.columns[column.key][i].item() if column.key != "kind" else str(each.columns["kind"][i])
           for column in NEURON_COLUMNS if column.key in each.columns}  # fmt: skip
    return {
        **row,
        "label": shown_label(each, int(each.columns["layer"][i]), int(each.columns["neuron"][i])),
        "tokens": tokens,
    }


def _silent_table(each: Measured, silent: np.ndarray) -> Table:
    rows = []
    for layer in each.by_layer:
        mine = each.columns["neuron"][silent[each.columns["layer"][silent] == layer]]
        if len(mine):
            shown = ", ".join(map(str, mine[:20])) + (f" and {len(mine) - 20:,} more" if len(mine) > 20 else "")
            rows.append({"layer": layer, "kind": each.by_layer[layer]["kind"], "silent": len(mine), "neurons": shown})
    columns = (
        Column("layer", "layer"),
        Column("kind", "reading"),
        Column("silent", "silent", "{:,}"),
        Column("neurons", "neurons"),
    )
    return Table("Silent", f"{each.label}: fired on none of {each.bundle.n_tokens:,} tokens.", columns, rows)
