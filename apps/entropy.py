"""Token entropy, semantic entropy and coherence of every neuron, from statistics bundles alone.

    python -m apps.entropy bundle=runs/quickstart/topk/bundles/0000000500
    python -m apps.entropy bundle=TOPK_BUNDLE bundle=DENSE_BUNDLE preset=paper

Each bundle gets entropy/PRESET with neurons.parquet, layers.csv and entropy.json; the same command again computes
nothing twice. Figures: python -m apps.report bundles=[...]. See docs/entropy.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.entropy bundle=PATH")

import logging
import sys

from apps._program import run
from topklm.errors import ConfigError, Problem
from topklm.interp import EntropyConfig

log = logging.getLogger("topklm.interp")


def main(config: EntropyConfig) -> None:
    from rich.console import Console

    from topklm.bundles import incomparable
    from topklm.interp.entropy.files import directory_of, measure_and_write, open_bundles, open_embedding
    from topklm.interp.entropy.table import convergence_table, layers_table
    from topklm.interp.progress import PassProgress

    bundles = open_bundles(config)
    if reasons := incomparable(bundles):
        if not config.force:
            advice = "measure them one by one, or see them side by side all the same with force=true"
            raise ConfigError([Problem("bundle", f"{reason}; {advice}") for reason in reasons])
        for reason in reasons:
            log.warning("%s: their entropies do not compare", reason)
    embeddings = [open_embedding(config, bundles, bundle) for bundle in bundles]
    console = Console()
    for bundle, embedding in zip(bundles, embeddings, strict=True):
        neurons = len(bundle.layers) * bundle.meta.model.dim
        with PassProgress(f"entropy {bundle.path.name}", neurons, True, unit="neurons") as progress:
            found = measure_and_write(config, bundle, embedding, progress.advance)
        console.print(layers_table(found))
        if found["convergence"]:
            console.print(convergence_table(found))
        console.print(f"written: {directory_of(config, bundle)}", highlight=False, markup=False, soft_wrap=True)


def _listed(args: list[str]) -> list[str]:
    """bundle=A bundle=B as bundle=[A,B]; a list that is given as one stays."""
    paths = [arg.removeprefix("bundle=") for arg in args if arg.startswith("bundle=")]
    if not paths or (len(paths) == 1 and paths[0].startswith("[")):
        return args
    return [*(arg for arg in args if not arg.startswith("bundle=")), f"bundle={paths!r}"]


if __name__ == "__main__":
    run(main, EntropyConfig, "entropy", __doc__ or "", _listed(sys.argv[1:]))
