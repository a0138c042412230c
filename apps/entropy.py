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

from apps._program import repeated, run, say
from topklm.errors import ConfigError, Problem
from topklm.interp import EntropyConfig

log = logging.getLogger("topklm.interp")


def main(config: EntropyConfig) -> None:
    from rich.console import Console

    from topklm.bundles import incomparable
    from topklm.interp.entropy.files import directory_of, measure_and_write, open_all, open_embedding
    from topklm.interp.entropy.table import convergence_table, layers_table
    from topklm.interp.progress import PassProgress

    bundles = open_all(config)
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
        say([], [directory_of(config, bundle)])


if __name__ == "__main__":
    run(main, EntropyConfig, "entropy", __doc__ or "", repeated(sys.argv[1:], "bundle"))
