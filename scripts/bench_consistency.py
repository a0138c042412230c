"""The Hungarian matching of two dictionaries relative to mutual nearest neighbours, by width, in one run.

python scripts/bench_consistency.py [--widths 512 1024 2048 4096] [--coordinates 1024] [--repeats 5] [--cpu-time]

Medians of interleaved runs. Both start from the dictionaries, so both include the cosines; "matching" is without them.
Half of the entries are planted to be the same, the other half have nothing in common, and `--same` says how large that
share is: the Hungarian method has the harder work the less there is to find.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from topklm.interp.consistency.match import cosine_blocks, cosines, hungarian, nearest


def planted(width: int, coordinates: int, same: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 dictionaries of which a share is the same but for noise (cosine 0.9), in another order."""
    a = rng.standard_normal((width, coordinates), np.float32)
    noise = np.where(np.arange(width) < same * width, 0.5, 50.0).astype(np.float32)[:, None]
    b = (a + noise * rng.standard_normal(a.shape, np.float32))[rng.permutation(width)]
    return tuple(rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--coordinates", type=int, default=1024)
    parser.add_argument("--same", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="where the machine has other work")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    print("| width | mutual nearest neighbours, s | Hungarian, s | ratio | matching alone, ratio | agree |")
    print("|---:|---:|---:|---:|---:|---:|")
    for width in args.widths:
        rng = np.random.default_rng(width)
        seconds: dict[str, list[float]] = {"cosines": [], "nearest": [], "hungarian": []}
        for repeat in range(args.repeats + 1):  # one to warm up
            a, b = planted(width, args.coordinates, args.same, rng)
            times = [clock()]
            found = nearest(cosine_blocks(a, b), width, width).mutual()
            times.append(clock())
            matrix = cosines(a, b)
            times.append(clock())
            best = hungarian(matrix)
            times.append(clock())
            if repeat:
                for name, start, stop in zip(("nearest", "cosines", "hungarian"), times, times[1:], strict=False):
                    seconds[name].append(stop - start)
        cosine, near, full = (statistics.median(seconds[name]) for name in ("cosines", "nearest", "hungarian"))
        agree = float((best.b[found.a] == found.b).mean())
        print(
            f"| {width:,} | {near:.2f} | {cosine + full:.2f} | {(cosine + full) / near:.1f} | "
            f"{full / max(near - cosine, 1e-3):.0f} | {agree:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
