"""Neurons worth steering: coherent, neither rare nor everywhere, persistent over depth; ranked by coherence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from topklm.bundles import Bundle
from topklm.bundles.labels import newest_labels, read_labels
from topklm.errors import ConfigError, Problem
from topklm.interp.labels.config import CandidatesConfig
from topklm.report.neurons.read import Measured
from topklm.report.neurons.tokens import top_tokens, visible
from topklm.report.table import Column, Table

PIECES = 10
COLUMNS = (
    Column("rank", "rank"),
    Column("name", "neuron"),
    Column("kind", "reading"),
    Column("density", "density", "{:.2%}"),
    Column("coherence", "coherence", "{:.3f}"),
    Column("coherence_q", "q", "{:.2g}"),
    Column("response_tokens", "tokens in its set", "{:.0f}"),
    Column("lift", "persistence lift", "{:.2f}"),
    Column("token_entropy", "token entropy", "{:.2f}"),
    Column("label", "class"),
    Column("tokens", "top tokens"),
)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What is left of all neurons, criterion by criterion."""

    names: list[str]
    """layer:index of the candidates, best first, at most n."""
    found: int
    """Candidates before n."""
    table: Table
    """The candidates."""
    funnel: Table
    """How many neurons meet each criterion, alone and together with those before it."""


def lifts(bundle: Bundle) -> np.ndarray:
    """P(active in layer l + 1 | active in l) / P(active in l + 1) of each neuron's index, float64 [M] over the bundle's
    layers; NaN where it never fired, never fires in the next layer, or where the bundle has no next layer."""
    found = []
    for layer in bundle.layers:
        stats = bundle.layer(layer).stats
        if stats.fired_next is None or layer + 1 not in bundle.layers:
            found.append(np.full(stats.width, np.nan))
            continue
        base = bundle.layer(layer + 1).stats.fired / bundle.n_tokens
        with np.errstate(divide="ignore", invalid="ignore"):
            lift = stats.fired_next / stats.fired / base
        found.append(np.where((stats.fired > 0) & (base > 0), lift, np.nan))
    return np.concatenate(found)


def find_candidates(config: CandidatesConfig, measured: Measured) -> Candidates:
    """The neurons that meet all criteria, by falling coherence; equal ones by layer and index."""
    bundle, columns = measured.bundle, measured.columns
    if config.layers is not None and (absent := sorted(set(config.layers) - set(bundle.layers))):
        told = f"{absent}: the bundle has {', '.join(map(str, bundle.layers))}"
        raise ConfigError([Problem("layers", told)])
    lift = lifts(bundle)
    density = columns["density"]
    fired = np.rint(density * bundle.n_tokens)
    criteria: list[tuple[str, np.ndarray]] = [
        ("not silent", ~columns["silent"].astype(bool)),
        (f"fires on at least {config.min_fired:,} tokens", fired >= config.min_fired),
        (f"density {config.min_density:g} to {config.max_density:g}",
         (density >= config.min_density) & (density <= config.max_density)),
        (f"responds to at least {config.min_types} token types", columns["response_tokens"] >= config.min_types),
        (f"coherent (q <= {config.fdr:g})", columns["coherence_q"] <= config.fdr),
    ]  # fmt: skip
    if config.min_lift > 0:
        criteria.append((f"persistent (lift >= {config.min_lift:g})", lift >= config.min_lift))
    if config.layers is not None:
        criteria.insert(0, ("in the layers asked for", np.isin(columns["layer"], config.layers)))
    kept = np.ones(len(density), bool)
    funnel: list[dict[str, Any]] = [{"criterion": "all neurons", "alone": len(kept), "together": len(kept)}]
    for name, holds in criteria:
        kept &= holds
        funnel.append({"criterion": name, "alone": int(holds.sum()), "together": int(kept.sum())})
    rows = np.flatnonzero(kept)
    order = rows[np.lexsort((columns["neuron"][rows], columns["layer"][rows], -columns["coherence"][rows]))]
    best = order[: config.n]
    neurons = [(int(columns["layer"][i]), int(columns["neuron"][i])) for i in best]
    tokens = top_tokens(bundle, neurons, PIECES, measured.min_count)
    labels = newest_labels(read_labels(bundle.path, bundle.sha256))
    shown = []
    for rank, (i, pair) in enumerate(zip(best.tolist(), neurons, strict=True), 1):
        label = labels.get((*pair, "wordnet"))
        row = {
            column.key: columns[column.key][i].item()
            for column in COLUMNS
            if column.key in columns and column.key != "kind"
        }
        row |= {"rank": rank, "name": f"{pair[0]}:{pair[1]}", "kind": str(columns["kind"][i]), "lift": float(lift[i])}
        row |= {
            "tokens": tokens[pair],
            "label": visible(label.label) if label is not None and label.significant else None,
        }
        shown.append(row)
    note = f"{measured.label}: by falling coherence, {len(shown)} of {len(rows):,}; layers are counted from 0."
    funnel_columns = [Column("criterion", "criterion"), Column("alone", "neurons", "{:,}"),
                      Column("together", "left with all above", "{:,}")]  # fmt: skip
    return Candidates(
        names=[f"{layer}:{neuron}" for layer, neuron in neurons], found=len(rows),
        table=Table("Candidates for steering", note, COLUMNS, shown),
        funnel=Table("What the criteria leave", "Each alone, and one after the other.", funnel_columns, funnel),
    )  # fmt: skip
