"""How fast the loader is: `python scripts/bench_data.py [--tokens 50_000_000] [--seq-len 1024] ...`, and import time.

Writes synthetic shards into a temporary directory, then measures, in one run: tokens/s without and with the
prefetching thread, with document ids, the time to the first batch at step 0 and at step 1,000,000, and what the
thread costs a main thread that is busy in Python. Medians; the files are in the page cache. Written as JSON too.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from benchmarking import headline, write_json

from topklm.data import (
    DataConfig,
    Manifest,
    SampleOrder,
    ShardWriter,
    TrainData,
    TrainLoader,
    open_data,
    write_manifest,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64, help="sequences per step (one rank)")
    parser.add_argument("--micro-batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60, help="steps per repetition")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench_data.json"))
    args = parser.parse_args()
    print(headline())
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        write(Path(scratch), args.tokens)
        seconds = time.perf_counter() - began
        print(f"writing shards               {args.tokens / seconds:>14,.0f} tokens/s")
        sources = {"large": 3.0, "small": 1.0}
        config = DataConfig(root_dir=scratch, sources=sources, seq_len=args.seq_len)
        began = time.perf_counter()
        data = open_data(config)
        print(f"open_data                    {1e3 * (time.perf_counter() - began):>14.1f} ms")
        results["tokens_per_second"] = throughput(data, args)
        results["first_batch_s"] = first_batch(data, args)
        results["python_step_s"] = disturbance(data, args)
        results["order_s"] = order_at_scale()
        results["import_s"] = imports(args.repeat)
    write_json(args.out, vars(args), results)


def write(root: Path, n_tokens: int) -> None:
    """Two sources, four fifths and one fifth of the tokens, documents of about 1,000 tokens."""
    rng = np.random.default_rng(0)
    for name, tokens in (("large", n_tokens * 4 // 5), ("small", n_tokens // 5)):
        with ShardWriter(root / name, "train", "synthetic", "uint16", 2**24) as writer:
            left = tokens
            while left:
                n = min(left, int(rng.integers(1, 2000)))
                writer.add(rng.integers(0, 32_000, n, dtype=np.uint16), 4 * n)
                left -= n
        tokenizer: dict[str, Any] = {"name": "bytes", "sha256": "0", "vocab_size": 32_000}
        manifest = Manifest(
            source=name, dtype="uint16", tokenizer=tokenizer, add_bos=False, add_eos=False, split={}, origin={},
            counts={}, skipped={}, shards=writer.close(),
        )  # fmt: skip
        write_manifest(root / name, manifest)


def loader(data: TrainData, args: argparse.Namespace, **options: Any) -> TrainLoader:
    return TrainLoader(
        data, global_batch_size=args.batch_size, micro_batch_size=args.micro_batch_size, prefetch_size=4, **options
    )


def throughput(data: TrainData, args: argparse.Namespace) -> dict[str, float]:
    rates: dict[str, float] = {}
    for what, options in (
        ("sync", {"load_async": False}),
        ("async", {"load_async": True}),
        ("sync, document ids", {"load_async": False, "with_document_ids": True}),
    ):
        seen = []
        for _ in range(args.repeat):
            batches = loader(data, args, **options)
            iterator = iter(batches)
            next(iterator)
            began = time.perf_counter()
            n = sum(batch.tokens.numel() for step in islice(iterator, args.steps) for batch in step)
            seen.append(n / (time.perf_counter() - began))
            batches.close()
        rates[what] = statistics.median(seen)
        ratio = rates[what] / rates["sync"]
        print(f"loader, {what:20s} {rates[what]:>14,.0f} tokens/s   {ratio:.2f} x sync")
    return rates


def first_batch(data: TrainData, args: argparse.Namespace) -> dict[int, float]:
    times: dict[int, float] = {}
    for start in (0, 1_000_000):
        seen = []
        for _ in range(args.repeat):
            began = time.perf_counter()
            batches = loader(data, args, start_step=start)
            next(iter(batches))
            seen.append(time.perf_counter() - began)
            batches.close()
        times[start] = statistics.median(seen)
        ratio = times[start] / times[0]
        print(f"first batch, step {start:<10,} {1e3 * times[start]:>14.1f} ms         {ratio:.2f} x step 0")
    return times


def disturbance(data: TrainData, args: argparse.Namespace) -> dict[str, float]:
    """A step of 50 ms of pure Python, which never gives the interpreter away: the worst neighbour of a thread."""

    def step() -> float:
        began, total = time.perf_counter(), 0
        for i in range(1_000_000):
            total += i
        return time.perf_counter() - began

    step()
    alone, beside = [], []
    batches = loader(data, args)
    for _ in range(args.repeat * 4):  # in turns, so that a busy machine hits both
        alone.append(step())
        iterator = iter(batches)
        next(iterator)
        beside.append(step())  # while the thread fills its queue of 4 steps
        batches.close()
    alone_s, beside_s = statistics.median(alone), statistics.median(beside)
    each = (beside_s - alone_s) / 4
    print(
        f"busy main thread             {1e3 * alone_s:>14.1f} ms alone, {1e3 * beside_s:.1f} ms while 4 steps are read"
    )
    print(f"                             {1e3 * each:>14.1f} ms for each step read")
    return {"alone": alone_s, "beside": beside_s}


def order_at_scale() -> dict[int, float]:
    """The order of ten billion tokens in windows of 2,048: five million windows, and sample number 10^9."""
    seen = {}
    for n in (0, 10_000_000, 1_000_000_000):
        began = time.perf_counter()
        SampleOrder({"web": 4_800_000, "code": 200_000}, {"web": 9.0, "code": 1.0}, 0).samples(n, n + 512)
        seen[n] = time.perf_counter() - began
    print(f"order of 5 M windows         {', '.join(f'{s:.2f} s from sample {n:,}' for n, s in seen.items())}")
    return seen


def imports(repeat: int) -> dict[str, float]:
    """Median extra time of `import topklm` over `import torch`, in fresh interpreters."""
    code = "import time; import torch; t = time.perf_counter(); import topklm{}; print(time.perf_counter() - t)"
    times = {}
    for what in ("topklm", "topklm.sparsify"):
        command = [sys.executable, "-c", code.format(what.removeprefix("topklm").replace(".", "; topklm."))]
        seen = [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(repeat)]
        times[what] = statistics.median(seen)
        print(f"import {what:21s} {1e3 * times[what]:>14.1f} ms beyond torch")
    return times


if __name__ == "__main__":
    main()
