"""Collect what every neuron responds to: one pass over a corpus, one statistics bundle.

    python -m apps.collect ckpt=runs/quickstart/topk tokens=10M
    torchrun --nproc-per-node 8 -m apps.collect ckpt=runs/paper/topk_d1024_l8 ckpts=all alpha=0
    python -m apps.collect ckpt=runs/quickstart/dense read_topk={k: 16}     # controls: also init=random

The bundle goes to bundles/STEP of the run; the same command again goes on where it was. Exit codes: 0 done, 2 wrong
configuration, 3 data, 4 activations not finite, 5 checkpoint. See docs/bundles.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.collect ckpt=PATH")

from apps._program import job, run
from topklm.interp import CollectConfig, collect


def main(config: CollectConfig) -> None:
    from rich.console import Console

    from topklm.bundles import open_bundle
    from topklm.interp.statistics.summary import summary_table

    with job(config.device, config.timeout_minutes) as ranks:
        paths = collect(config, ranks)
    if not ranks.is_first:
        return
    console = Console()
    for path in paths:
        bundle = open_bundle(path)
        console.print(summary_table(bundle))
        for name, found in bundle.meta.checks.items():
            console.print(
                f"selections, {name}: {found['tokens_differ']:.2%} of {found['tokens']:,} differ", highlight=False
            )


if __name__ == "__main__":
    run(main, CollectConfig, "collect", __doc__ or "")
