"""Write the report on neurons: figures, tables and the page, replaced together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from topklm.errors import ConfigError
from topklm.optional import require
from topklm.report.figure import save
from topklm.report.neurons.clouds import convergence_figure, density_figure
from topklm.report.neurons.depth import depth_figure, silent_figure
from topklm.report.neurons.read import Measured, comparable
from topklm.report.neurons.seeds import over_seeds, seed_statements, seed_table
from topklm.report.neurons.series import newest
from topklm.report.neurons.tables import bundle_table, layer_table, neuron_tables
from topklm.report.neurons.training import training_figure
from topklm.report.neurons.verdict import verdicts
from topklm.report.page import Picture, Section, page
from topklm.report.result import ReadResult
from topklm.report.table import Table, csv_text, markdown

FIGURES = {
    "entropy_depth": ("Entropy by depth", depth_figure,
        "Mean token entropy, semantic entropy and coherence of each layer's neurons. A low semantic entropy alone is "
        "no evidence of a concept: read it beside the coherence."),
    "entropy_training": ("Entropy over training", training_figure,
        "Mean token and semantic entropy over the checkpoints, in the last TopK layer and the last dense layer."),
    "density": ("Density against entropy", density_figure,
        "Each neuron's token entropy against the share of tokens on which it fires."),
    "silent": ("Silent neurons by depth", silent_figure, "Share of each layer's neurons that fired on no token."),
    "convergence": ("Token entropy and corpus size", convergence_figure,
        "Mean token entropy of each layer, measured on growing parts of the corpus: it is biased low on few tokens."),
}  # fmt: skip
"""Name of the files: title, what draws it, what it shows. The ways of drawing return None where there is nothing."""


def write_neurons(measured: Sequence[Measured], out: Path, results: Sequence[ReadResult] = ()) -> list[Path]:
    """Write `index.html`, the figures (`.png`, `.svg`), `neurons.md`, `neurons.csv`, `layers.csv` and `bundles.csv` to
    `out`; returns their paths, the page first. The `results` of further analyses are sections of the page.

    Everything is made in a directory beside and only then moved; figures of an earlier report that this one does not
    have are removed. Raises `ConfigError` if matplotlib is missing or `out` cannot be written.
    """
    require("matplotlib", "topklm[plots]")  # before anything is written
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".making-") as making:
            made = _make(measured, Path(making), results)
            for path in made:
                os.replace(path, out / path.name)
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {out}: {error}") from error
    names = {path.name for path in made}
    for stem in FIGURES:
        for suffix in (".png", ".svg"):
            if stem + suffix not in names:
                (out / (stem + suffix)).unlink(missing_ok=True)
    return [out / path.name for path in made]


def _make(measured: Sequence[Measured], directory: Path, results: Sequence[ReadResult]) -> list[Path]:
    pictures, paths = [], []
    for stem, (title, draw, text) in FIGURES.items():
        if (drawn := draw(measured)) is not None:
            saved = save(drawn[0], directory / stem, drawn[1])
            paths += saved
            pictures.append(Picture(title, saved[1], text, drawn[1]))
    shown = [each for each in newest(measured) if not each.is_initial]
    labelled = any(each.labels for each in shown)
    neurons = [(each, neuron_tables(each, labelled)) for each in shown]
    layers, bundles = layer_table(measured), bundle_table(measured)
    seeds = over_seeds(measured)
    statements = [*seed_statements(seeds), *verdicts(measured)]
    warnings = [
        f"Shown side by side by force: {reason}; the figures do not compare." for reason in comparable(measured)
    ]
    of_seeds = [seed_table(seeds)] if seeds else []
    sections = [
        Section("Figures", pictures=pictures),
        *(result.section for result in results),
        Section("Neurons", folded=[(each.label, tables) for each, tables in neurons]),
        *([Section("Seeds", tables=of_seeds)] if seeds else []),
        Section("Layers", tables=[layers]),
        Section("Provenance", tables=[bundles]),
    ]
    every = [table for _, tables in neurons for table in tables]
    texts = {
        "index.html": page("What the neurons respond to", statements, warnings, sections),
        "neurons.md": markdown(
            [*of_seeds, layers, *every, bundles],
            "What the neurons respond to",
            [*statements, *warnings],
        ),
        "neurons.csv": _neurons_csv(neurons),
        "layers.csv": csv_text([layers]),
        "bundles.csv": csv_text([bundles]),
    }
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    return [*(directory / name for name in texts), *paths]


def _neurons_csv(neurons: Sequence[tuple[Measured, list[Table]]]) -> str:
    """The ranked neurons of all models; the silent ones stand in each bundle's own `neurons.parquet`."""
    ranked = {id(table): f"{each.label}: {table.title}" for each, tables in neurons for table in tables[:-1]}
    tables = [table for _, tables in neurons for table in tables[:-1]]
    return csv_text(tables, lambda table: ranked[id(table)])
