"""Write the files of a comparison, each replaced as a whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from topklm.errors import ConfigError
from topklm.optional import require
from topklm.report.compare import Comparison
from topklm.report.curves import health_curves, training_curves
from topklm.report.figure import save
from topklm.report.runs import Run
from topklm.report.tables import csv_text, markdown


def write_report(comparison: Comparison, runs: Sequence[Run], out: Path) -> list[Path]:
    """Write `comparison.md`, `comparison.csv`, `curves` and `health` (`.png`, `.svg`) to `out`; returns their paths.

    Everything is made in a directory beside and only then moved: a report that stood there before stays whole if
    something fails. `health` is missing, and an earlier one removed, where no run has TopK health figures. Raises
    `ConfigError` if matplotlib is missing or `out` cannot be written.
    """
    require("matplotlib", "topklm[plots]")  # before anything is written
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".making-") as making:
            made = _make(comparison, runs, Path(making))
            for path in made:
                os.replace(path, out / path.name)
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {out}: {error}") from error
    if not any(path.stem == "health" for path in made):
        for suffix in (".png", ".svg"):
            (out / f"health{suffix}").unlink(missing_ok=True)
    return [out / path.name for path in made]


def _make(comparison: Comparison, runs: Sequence[Run], directory: Path) -> list[Path]:
    tables = [directory / "comparison.md", directory / "comparison.csv"]
    tables[0].write_text(markdown(comparison), encoding="utf-8")
    tables[1].write_text(csv_text(comparison), encoding="utf-8")
    figure, provenance = training_curves(runs)
    paths = [*tables, *save(figure, directory / "curves", provenance)]
    health = health_curves(runs)
    if health is not None:
        figure, provenance = health
        paths += save(figure, directory / "health", provenance)
    return paths
