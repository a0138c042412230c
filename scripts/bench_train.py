"""What the TopK costs in training: a TopK step over a dense step, alternating in one run; loader and import time.

    python scripts/bench_train.py [--dim 128 --layers 6 --k 16 --batch 8 --seq-len 256 --vocab 4096 --rounds 15]

Prints medians and ratios. The steps are whole ones: forward, backward, clipping, fused AdamW; alpha = 0 (pure) and
alpha = 0.5 (annealing) are measured apart.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from topklm.data import DataConfig, Manifest, ShardWriter, TrainLoader, open_data, write_manifest
from topklm.model import ModelConfig, build_model
from topklm.sparsity import TopKConfig, set_alpha
from topklm.train.optim import OptimConfig, build_optimizer

DEFAULTS = {"dim": 128, "layers": 6, "heads": 4, "k": 16, "batch": 8, "seq_len": 256, "vocab": 4096, "rounds": 15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--ffn-dim", type=int)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    per_second = bench_steps(args)
    bench_loader(args, per_second)
    bench_import()


def bench_steps(args: argparse.Namespace) -> float:
    """Returns the dense model's tokens/s."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = ModelConfig(
        dim=args.dim, n_layers=args.layers, n_heads=args.heads, vocab_size=args.vocab, ffn_dim=args.ffn_dim,
        max_seqlen=args.seq_len,
    )  # fmt: skip
    variants = {
        "dense": (None, 0.0),
        "topk": (TopKConfig(k=args.k), 0.0),
        "topk annealing": (TopKConfig(k=args.k), 0.5),
    }
    steps = {name: make_step(config, topk, alpha, args, device, dtype) for name, (topk, alpha) in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(args.rounds + 2):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_ >= 2:  # the first two warm up allocators and, if asked for, the compiler
                times[name].append(time.perf_counter() - began)
    tokens = args.batch * args.seq_len
    print(
        f"{device.type}, {dtype}, {config.n_params / 1e6:.1f} M parameters, {tokens} tokens/step, {args.rounds} rounds"
    )
    for name, seconds in times.items():
        # The ratio within a round, then its median: what slows the machine down slows neighbours alike.
        ratio = statistics.median(a / b for a, b in zip(seconds, times["dense"], strict=True))
        print(f"  {name:15s} {tokens / statistics.median(seconds):>10,.0f} tokens/s   {ratio:.3f} x the dense step")
    return tokens / statistics.median(times["dense"])


def make_step(config, topk, alpha, args, device, dtype):  # type: ignore[no-untyped-def]
    model = build_model(config, topk).to(device)
    if topk is not None:
        set_alpha(model, alpha)
    if args.compile:
        for block in model.layers:
            block.forward = torch.compile(block.forward)
    optimizer = build_optimizer(model, OptimConfig())
    tokens = torch.randint(0, args.vocab, (args.batch, args.seq_len + 1), device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def bench_loader(args: argparse.Namespace, training_tokens_per_second: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "synthetic"
        tokenizer = {"name": "bytes", "sha256": "0", "vocab_size": args.vocab, "bos_id": 0, "eos_id": 1}
        writer = ShardWriter(source, "train", "synthetic", "uint16", 2**23)
        rng = np.random.default_rng(0)
        for _ in range(200):
            writer.add(rng.integers(0, args.vocab, 50_000), 200_000)
        shards = writer.close()
        write_manifest(
            source,
            Manifest(
                source="synthetic", dtype="uint16", tokenizer=tokenizer, add_bos=True, add_eos=True, split={},
                origin={}, counts={}, skipped={}, shards=shards,
            ),
        )  # fmt: skip
        config = DataConfig(root_dir=scratch, sources={"synthetic": 1.0}, seq_len=args.seq_len)
        loader = TrainLoader(
            open_data(config), global_batch_size=64, micro_batch_size=64, rank=0, world_size=1, start_step=0,
            load_async=False, prefetch_size=1, pin_memory=False, with_document_ids=False,
        )  # fmt: skip
        rates = []
        for i, batches in enumerate(loader):
            if i == 0:
                began = time.perf_counter()
                continue
            now = time.perf_counter()
            rates.append(sum(b.tokens.numel() for b in batches) / (now - began))
            began = now
            if i == 50:
                break
        rate = statistics.median(rates)
    print(
        f"  loader          {rate:>10,.0f} tokens/s   {rate / training_tokens_per_second:.0f} x training (one process)"
    )


def bench_import() -> None:
    """Median extra time of `import topklm` over `import torch`, in fresh interpreters."""
    code = "import time; import torch; t = time.perf_counter(); import topklm{}; print(time.perf_counter() - t)"
    for what in ("", "; topklm.sparsify"):
        out = [
            float(subprocess.run([sys.executable, "-c", code.format(what)], capture_output=True, check=True).stdout)
            for _ in range(5)
        ]
        print(f"  import topklm{what:20s} {statistics.median(out):.3f} s beyond torch")


if __name__ == "__main__":
    main()
