"""Kill a training run again and again and prove that nothing is lost: `python -m scripts.soak --out DIR [--kills 50]`.

From the repository's root. A tiny run is trained once without interruption, then again and again while it is killed
(SIGKILL) at random moments, many of them in the middle of a save, of its completion or of a clean-up, and resumed.
Losses, gradient norms, validation and weights must be the same bit for bit, in every line that any process wrote; no
checkpoint may be broken or lost. Prints a table and writes DIR/soak.json; ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import topklm
from tests.crash import PHASES, Crasher, Tally
from tests.programs import prepare_speeches, run_app, tiny_run, torchrun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a directory that is new or empty")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60, help="of a run")
    parser.add_argument("--ranks", type=int, default=1, help="gloo ranks of one torchrun; some kills hit one rank only")
    parser.add_argument("--async-save", action="store_true", help="checkpoint.async_save=true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"topklm of {Path(topklm.__file__).parent}", flush=True)
    prepare_speeches(options.out / "data")
    args = [*tiny_run(options.out / "data"), f"steps={options.steps}", f"checkpoint.async_save={options.async_save}"]
    began = time.monotonic()
    job = torchrun(options.ranks) if options.ranks > 1 else []
    run_app(*job, "apps.train", *args, f"dump_dir={options.out / 'reference'}")
    crasher = Crasher(
        args, options.out / "reference", options.out, options.kills, options.seed, options.ranks,
        lifetime=time.monotonic() - began,
    )  # fmt: skip
    tally = crasher.run(tell)
    for phase in PHASES:
        print(f"{phase:12} {tally.kills[phase]:5} kills")
    print(f"{'all':12} {tally.kills.total():5} kills, {tally.one_rank} of them of one rank alone")
    print(f"{tally.resumes} resumes, {tally.finished} finished runs, {tally.steps} logged steps compared")
    print(f"mismatches: {len(tally.mismatches)}", *tally.mismatches, sep="\n  ")
    figures = {**vars(tally), "seconds": round(time.monotonic() - began), "options": vars(options)}
    (options.out / "soak.json").write_text(json.dumps(figures, indent=1, default=str))
    return 1 if tally.mismatches else 0


def tell(tally: Tally) -> None:
    """One line after each kill."""
    print(f"{tally.kills.total()} kills {dict(tally.kills)}, mismatches: {len(tally.mismatches)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
