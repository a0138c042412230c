"""TopK forward and backward on this machine, relative to `torch.topk(sorted=False)` + scatter, in one run.

python scripts/bench_topk.py [--device cpu] [--threads 1] [--tokens 2048] [--repeats 9] [--compile]

Ratios of medians of interleaved runs: below 1 is faster than the baseline. The baseline keeps exactly k too, but
not the lowest indices on ties. With `--compile` the surrounding of the selection is compiled (Inductor).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from topklm.sparsity import annealed_topk, topk
from topklm.sparsity import selection as library

Rows = Callable[[Tensor, int], Tensor]


def baseline(x: Tensor, k: int) -> Tensor:
    values, index = torch.topk(x, k, dim=-1, sorted=False)
    return torch.zeros_like(x).scatter(-1, index, values.relu())


def threshold_and_cumsum(x: Tensor, k: int) -> Tensor:
    """Exact: compare with the k-th value, ties by a cumulative sum."""
    least = torch.topk(x, k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, equal = x > least, x == least
    missing = k - above.sum(-1, keepdim=True)
    mask = above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= missing))
    return torch.where(mask, x.relu(), 0)


def values_then_keys(x: Tensor, k: int) -> Tensor:
    """torch.topk on the numbers, and again by keys for the rows whose k-th value is not unique."""
    index = torch.topk(x, k, dim=-1, sorted=False).indices
    least = x.gather(-1, index).amin(-1, keepdim=True)
    again = ((x >= least).sum(-1) != k).nonzero().squeeze(-1)
    if again.numel():
        index[again] = library._by_keys(x[again], k).to(index.dtype)
    return index


def stable_sort(x: Tensor, k: int) -> Tensor:
    index = torch.sort(x, dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(x).scatter(-1, index, x.gather(-1, index).relu())


def with_rows(rows: Rows) -> Rows:
    """The library's topk around another way to select."""

    def run(x: Tensor, k: int) -> Tensor:
        kept, library.select_rows = library.select_rows, lambda x, k: rows(x, k).to(library.record_dtype(x.shape[-1]))
        try:
            return topk(x, k)
        finally:
            library.select_rows = kept

    return run


def candidates() -> dict[str, Rows]:
    alpha = torch.tensor(0.5)
    return {
        "torch.topk + scatter": baseline,
        "relu alone": lambda x, k: x.relu(),
        "library": topk,
        "library, annealing": lambda x, k: annealed_topk(x, k, alpha),
        "torch.topk by keys": with_rows(library._by_keys),
        "torch.topk, ties by keys": with_rows(values_then_keys),
        "threshold + cumsum": threshold_and_cumsum,
        "stable sort": stable_sort,
    }


def measure(runs: dict[str, Rows], x: Tensor, k: int, repeats: int) -> dict[str, float]:
    """Median seconds of forward and backward."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    grad = torch.randn_like(x)
    for repeat in range(repeats + 2):  # two to warm up
        for name, run in runs.items():
            leaf = x.detach().requires_grad_()
            _sync(x)
            start = time.perf_counter()
            run(leaf, k).backward(grad)
            _sync(x)
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _sync(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=2048, help="rows at D = 1024, in proportion elsewhere")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 1024, 2048])
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = candidates()
    if args.compile:
        runs |= {f"{name}, compiled": torch.compile(runs[name]) for name in ("torch.topk + scatter", "library")}
    columns: dict[str, dict[str, float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for dim in args.dims:
            x = torch.randn(args.tokens * 1024 // dim, dim, device=args.device).to(dtype)
            columns[f"{str(dtype).removeprefix('torch.')} {dim}"] = measure(runs, x, args.k, args.repeats)
    print(f"k = {args.k}, {args.device}, {args.threads} threads, torch {torch.__version__}")
    print(f"| forward + backward | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name in runs:
        ratios = (f"{column[name] / column['torch.topk + scatter']:.2f}" for column in columns.values())
        print(f"| {name} | {' | '.join(ratios)} |")
    milliseconds = (f"{column['torch.topk + scatter'] * 1e3:.1f}" for column in columns.values())
    print(f"| baseline, ms | {' | '.join(milliseconds)} |")


if __name__ == "__main__":
    main()
