"""Write the files of a comparison of evaluations, each replaced as a whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from topklm.errors import ConfigError
from topklm.optional import require
from topklm.report.evals.compare import EvalComparison
from topklm.report.evals.picture import evaluation_figure
from topklm.report.evals.tables import csv_text, differences_csv, latex, markdown
from topklm.report.figure import save


def write_comparison(comparison: EvalComparison, out: Path) -> list[Path]:
    """Write `evaluation.md`, `.csv`, `.tex`, `.png`, `.svg` and `differences.csv` to `out`; returns their paths.

    Everything is made in a directory beside and only then moved. There is no picture, and an earlier one is removed,
    where there is neither an accuracy nor a difference. Raises `ConfigError` if matplotlib is missing or `out` cannot
    be written.
    """
    require("matplotlib", "topklm[plots]")  # before anything is written
    texts = {
        "evaluation.md": markdown(comparison),
        "evaluation.csv": csv_text(comparison),
        "evaluation.tex": latex(comparison),
        "differences.csv": differences_csv(comparison),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".making-") as making:
            made = [Path(making) / name for name in texts]
            for path in made:
                path.write_text(texts[path.name], encoding="utf-8")
            picture = evaluation_figure(comparison)
            if picture is not None:
                figure, provenance = picture
                made += save(figure, Path(making) / "evaluation", provenance)
            for path in made:
                os.replace(path, out / path.name)
    except OSError as error:
        raise ConfigError(f"the comparison cannot be written to {out}: {error}") from error
    if picture is None:
        for suffix in (".png", ".svg"):
            (out / f"evaluation{suffix}").unlink(missing_ok=True)
    return [out / path.name for path in made]
