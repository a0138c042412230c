"""TopK of a residual sum on this machine: forward, and forward + backward, over `torch.topk(sorted=False)` + scatter.

    python scripts/bench_topk.py                                   # the CPU path
    python scripts/bench_topk.py --device cuda --dtypes bf16       # the kernel, at 32k tokens
    python scripts/bench_topk.py --json topk.json --growth         # and how it grows with D, k and rows

Ratios within a round of interleaved runs, medians over the rounds: below 1 is faster than the baseline. That keeps
exactly k too, but not the lowest indices on ties. "dense add" is the floor of the memory: it reads the stream and the
update and writes their sum, as the kernel's forward does; with the backward it is two of them. Other libraries
(quack-kernels, flashinfer) take part where they are installed, with the sum and the scatter around them. On a CPU the
time is that of the process, which a busy machine does not change much.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarking import Times, alternate, exponent, headline, table, write_json
from torch import Tensor

from topklm.sparsity import annealed_topk, topk
from topklm.sparsity import selection as library
from topklm.sparsity.kernels.choice import Kernel
from topklm.sparsity.kernels.op import residual_topk

Run = Callable[[Tensor, Tensor, int], Tensor]
"""(stream, update, k) -> A(stream + update)."""
BASE, FLOOR = "torch.topk + scatter", "dense add"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def scattered(x: Tensor, values: Tensor, index: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter(-1, index.long(), values.relu())


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
    values, index = torch.sort(x, dim=-1, descending=True, stable=True)
    return scattered(x, values[..., :k], index[..., :k])


def with_rows(rows: Callable[[Tensor, int], Tensor]) -> Run:
    """The library's topk around another way to select."""

    def run(stream: Tensor, update: Tensor, k: int) -> Tensor:
        kept, library.select_rows = library.select_rows, lambda x, k: rows(x, k).to(library.record_dtype(x.shape[-1]))
        try:
            return topk(stream + update, k)
        finally:
            library.select_rows = kept

    return run


def on_sum(of_x: Callable[[Tensor, int], Tensor]) -> Run:
    return lambda stream, update, k: of_x(stream + update, k)


def kernel(alpha: Tensor | None) -> Run:
    numbers: dict[int, Tensor] = {}
    return lambda s, u, k: residual_topk(s, u, numbers.setdefault(k, torch.tensor(k)), alpha, "blend")[0]


def others() -> dict[str, Run]:
    """Of other libraries, those that are installed."""
    found: dict[str, Run] = {}
    for module, name in (("quack.topk", "topk"), ("flashinfer", "top_k")):
        try:
            select = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
        found[f"{module}.{name}"] = on_sum(lambda x, k, select=select: scattered(x, *select(x, k)))
    return found


def candidates(device: torch.device) -> dict[str, Run]:
    half = torch.tensor(0.5)
    runs: dict[str, Run] = {
        BASE: on_sum(lambda x, k: scattered(x, *torch.topk(x, k, dim=-1, sorted=False))),
        FLOOR: lambda stream, update, k: stream + update,
        "ReLU alone": on_sum(lambda x, k: x.relu()),
        "library": on_sum(topk),
        "library, annealing": on_sum(lambda x, k: annealed_topk(x, k, half)),
    }
    if Kernel.of("auto").why_not(device, torch.float32, 8) is None:
        runs |= {"kernel": kernel(None), "kernel, annealing": kernel(half)}
    return runs | {
        "torch.topk by keys": with_rows(library._by_keys),
        "torch.topk, ties by keys": with_rows(values_then_keys),
        "threshold + cumsum": on_sum(threshold_and_cumsum),
        "stable sort": on_sum(stable_sort),
        **others(),
    }


def job(name: str, run: Run, tensors: tuple[Tensor, Tensor], k: int, backward: bool, times: int) -> Callable[[], None]:
    """`times` runs in a row, so that on a GPU the wait for the end does not count."""
    stream, update = (tensor.detach().requires_grad_(backward) for tensor in tensors)
    gradient = torch.randn_like(stream)

    def once() -> None:
        out = run(stream, update, k)
        if backward and name == FLOOR:
            gradient + out.detach()  # its own backward moves nothing: a second one stands for it
        elif backward:
            torch.autograd.grad(out, (stream, update), gradient)

    def repeated() -> None:
        with torch.set_grad_enabled(backward):
            for _ in range(times):
                once()

    return repeated


def measure(runs: dict[str, Run], shape: tuple[int, int], dtype: torch.dtype, k: int, args: Any, back: bool) -> Times:
    """Of those that take these sizes; others are told and left out."""
    tensors = tuple(torch.randn(shape, device=args.device).to(dtype) for _ in range(2))
    jobs = {}
    for name, run in runs.items():
        made = job(name, run, (tensors[0], tensors[1]), k, back, 20 if tensors[0].is_cuda else 1)
        try:
            made()
        except Exception as error:  # other libraries refuse in many ways
            if name in (BASE, FLOOR):
                raise
            print(f"{name} left out at {shape}, k = {k}: {str(error).splitlines()[0][:120]}")
            continue
        jobs[name] = made
    return alternate(jobs, args.rounds, cpu_time=args.device == "cpu")


def compare(runs: dict[str, Run], args: Any) -> list[dict[str, Any]]:
    """A table for each of forward, and forward + backward; returns what stands in them."""
    results: list[dict[str, Any]] = []
    for back in (False, True):
        columns: dict[str, Times] = {}
        for kind in args.dtypes:
            for dim in args.dims:
                shape = (max(1, args.tokens * 1024 // dim), dim)
                times = columns[f"{kind} {dim}"] = measure(runs, shape, DTYPES[kind], args.k, args, back)
                results += [
                    {
                        "run": name, "backward": back, "dtype": kind, "dim": dim, "rows": shape[0], "k": args.k,
                        "seconds": times.median(name), "to_baseline": times.ratio(name, BASE),
                        "quartiles": times.spread(name, BASE), "to_floor": times.ratio(name, FLOOR),
                    }
                    for name in times.seconds
                ]  # fmt: skip
        rows = [
            [name, *(f"{t.ratio(name, BASE):.2f}" if name in t.seconds else "-" for t in columns.values())]
            for name in runs
        ]
        for name in (n for n in ("library", "kernel") if n in runs):
            rows.append([f"{name} over {FLOOR}", *(f"{t.ratio(name, FLOOR):.2f}" for t in columns.values())])
        rows.append(["baseline, ms", *(f"{t.median(BASE) * 1e3:.2f}" for t in columns.values())])
        print(f"\n{table(['forward + backward' if back else 'forward', *columns], rows)}")
    return results


def growth(runs: dict[str, Run], args: Any) -> list[dict[str, Any]]:
    """Forward + backward over D, k and rows, one at a time, with the exponent of each."""
    names = [name for name in (BASE, FLOOR, "library", "kernel") if name in runs]
    kept, kind, dim, rows = {name: runs[name] for name in names}, args.dtypes[-1], args.dims[-1], args.tokens
    axes = {
        "D": [((rows, d), args.k) for d in (256, 512, 1024, 2048, 4096, 8192)],
        "k": [((rows, dim), k) for k in (8, 32, 128, 512) if k <= dim],
        "rows": [((n, dim), args.k) for n in (rows // 8, rows // 4, rows // 2, rows)],
    }
    results = []
    for axis, points in axes.items():
        at = [{"D": shape[1], "k": k, "rows": shape[0]}[axis] for shape, k in points]
        times = [measure(kept, shape, DTYPES[kind], k, args, True) for shape, k in points]
        lines = []
        for name in names:
            seconds = [t.median(name) for t in times]
            slope = exponent(at, seconds)
            lines.append([name, *(f"{s * 1e3:.2f}" for s in seconds), f"{slope:.2f}"])
            results.append({"run": name, "axis": axis, "at": at, "seconds": seconds, "exponent": slope})
        print(f"\n{table([f'{axis} ({kind}), ms', *map(str, at), 'exponent'], lines)}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, help="rows at D = 1024, in proportion elsewhere: 2048, on a GPU 65536")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 1024, 2048])
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--growth", action="store_true", help="tables over D, k and rows, with exponents")
    parser.add_argument("--compile", action="store_true", help="the surroundings of the selection by Inductor, too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.tokens is not None and args.tokens < 8:
        parser.error("--tokens: at least 8")
    args.tokens = args.tokens or (65536 if "cuda" in args.device else 2048)
    torch.set_num_threads(args.threads)
    runs = candidates(torch.device(args.device))
    if args.compile:
        runs |= {f"{name}, compiled": torch.compile(runs[name]) for name in (BASE, "library", "kernel") if name in runs}
    print(f"k = {args.k}, {args.device}, {headline()}")
    results = {"comparison": compare(runs, args), "growth": growth(runs, args) if args.growth else []}
    if args.json:
        write_json(args.json, vars(args), results)


if __name__ == "__main__":
    main()
