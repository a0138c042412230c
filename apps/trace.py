"""Histories of dimensions, from the statistics bundles of a run's checkpoints:

    python -m apps.trace run=runs/quickstart/topk token=" work"             one dimension over layers x checkpoints
    python -m apps.trace run=runs/quickstart/topk neuron=2:17               the same of the token it responds to most
    python -m apps.trace match RUN/bundles TWIN/bundles                     identity-match rate, over training and depth
    python -m apps.trace persistence RUN/bundles TWIN/bundles               who stays active from layer to layer

The bundles: python -m apps.collect ckpt=RUN ckpts=all (and alpha=0, init=random, read_topk={k: 16} for what to compare
with). Each writes figures, tables and result.json to `out`, which apps.report results=[...] shows. See docs/tracing.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.trace run=RUN token=TEXT")

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps._program import bare_paths, run, say
from topklm.config import describe
from topklm.interp.histories import (
    MatchConfig,
    PersistenceConfig,
    TraceConfig,
    match_result,
    persistence_result,
    trace_result,
)
from topklm.optional import require
from topklm.report.result import Result, write_result

DOC = __doc__ or ""


def trace(config: TraceConfig) -> None:
    _do(trace_result, config, "report/trace")


def match(config: MatchConfig) -> None:
    _do(match_result, config, "report/identity_match")


def persistence(config: PersistenceConfig) -> None:
    _do(persistence_result, config, "report/persistence")


MODES: dict[str, tuple[Callable[[Any], None], type]] = {
    "trace": (trace, TraceConfig),
    "match": (match, MatchConfig),
    "persistence": (persistence, PersistenceConfig),
}


def _do(compute: Callable[..., Result], config: Any, default: str) -> None:
    require("matplotlib", "topklm[plots]")  # before the bundles are read
    result = compute(config, shown=True)
    written = write_result(result, Path(config.out or default))
    say(result.statements, written)


def main(args: list[str]) -> None:
    """The first word says what is done; further words without `=` are bundles."""
    mode = args.pop(0) if args and args[0] in MODES else "trace"
    if {"-h", "--help"} & set(args) and len(args) == 1 and mode == "trace":
        usage = "usage: python -m apps.trace [trace|match|persistence] [BUNDLES ...] key=value ..."
        print(f"{usage}\n\n{inspect.cleandoc(DOC)}")
        for name, (_, schema) in MODES.items():
            print(f"\n{name}:" + describe(schema, "trace", "").split("keys:", 1)[1])
        sys.exit(0)
    paths, args = bare_paths(args)
    job, schema = MODES[mode]
    program = "trace" if mode == "trace" else f"trace {mode}"
    run(job, schema, program, DOC, [*args, *([f"bundles={paths!r}"] if paths else [])])


if __name__ == "__main__":
    main(sys.argv[1:])
