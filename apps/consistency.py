"""Consistency across seeds: do runs that differ in their seeds find the same neurons?

    python -m apps.consistency runs/a/bundles/0000000500 runs/b/bundles/0000000500 runs/c/bundles/0000000500
    python -m apps.consistency TOPK_BUNDLES... DENSE_BUNDLES... INITIAL_BUNDLES... dictionary=profiles out=report/seeds
    python -m apps.consistency sae_a.safetensors sae_b.safetensors          # any decoders [m, d]

Bundles of one configuration are paired; those of other configurations are compared beside, and random initialisations
(apps.collect init=random) are floors. The same command again goes on where it was. See docs/consistency.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.consistency BUNDLES...")

import dataclasses
import sys
from pathlib import Path

from apps._program import bare_paths, run, say
from topklm.interp.consistency import ConsistencyConfig


def main(config: ConsistencyConfig) -> None:
    from rich.console import Console

    from topklm.interp.consistency import clouds_of, measure, open_inputs, rows_of, strata_of
    from topklm.interp.progress import PassProgress
    from topklm.report import consistency as report
    from topklm.report.result import Result, write_result

    inputs, out = open_inputs(config), Path(config.out)
    with PassProgress("consistency", inputs.n_comparisons, True, unit="matchings") as progress:
        measured = measure(inputs, out, lambda there: progress.skip(1) if there else progress.advance(1))
    rows, strata = rows_of(measured), strata_of(measured)
    what, provenance = inputs.words, inputs.provenance()
    tables = report.consistency_tables(rows, strata, what, config.threshold)
    said = [*inputs.warnings, *report.statements(rows, what, config.threshold)]
    written = write_result(
        Result(
            kind="consistency", title=f"Consistency across seeds: {what}", statements=said, provenance=provenance,
            tables=tables,
            drawings=report.consistency_drawings(rows, strata, clouds_of(measured), what, config.threshold, provenance),
            data={
                "settings": dataclasses.asdict(config), "layers": rows, "strata": strata,
                "pairs": [each.as_data() for each in measured],
            },
        ),
        out,
    )  # fmt: skip
    console = Console()
    console.print(report.terminal_table(rows, what))
    say(said, written)


def _listed(args: list[str]) -> list[str]:
    """Bundles and files that are given as bare paths, as bundles=[...] and files=[...]."""
    paths, others = bare_paths(args)
    files = [path for path in paths if Path(path).suffix in (".safetensors", ".npy")]
    given = {"bundles": [path for path in paths if path not in files], "files": files}
    return [*others, *(f"{key}={value!r}" for key, value in given.items() if value)]


if __name__ == "__main__":
    run(main, ConsistencyConfig, "consistency", __doc__ or "", _listed(sys.argv[1:]))
