"""What collecting statistics costs: a pass with them over a forward-only pass of the same tokens, in turns.

    python scripts/bench_collect.py [--dim 256 --layers 6 --k 32 --vocab 8000 --seq-len 256 --batch 8 --rounds 30]

Medians of the ratios of neighbouring passes, for a TopK model, its dense twin, the twin read through a cut, and a TopK
model that is annealing. "blocks": over the blocks alone, which is all that collecting runs; "logits": over a forward
pass to the logits. The first tokens cost more (every token is a candidate of the contexts): "first" is the first
pass. Tokens are drawn from a Zipf distribution over the vocabulary.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmarking import write_json

from topklm.bundles import Settings
from topklm.interp.statistics.layer_pass import LayerPass
from topklm.interp.statistics.layer_plan import layer_bytes, plan_layers
from topklm.interp.statistics.reading import ReadTopK
from topklm.interp.statistics.tap import tap
from topklm.model import ModelConfig, Transformer, build_model
from topklm.sparsity import TopKConfig, set_alpha

DEFAULTS = {"dim": 256, "layers": 6, "heads": 4, "k": 32, "vocab": 8000, "seq_len": 256, "batch": 8, "rounds": 30}
SETTINGS = Settings(near_miss=0.05, top_contexts=16, sample_contexts=4, positive_part=False, token_fired=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--ffn-dim", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu-time", action="store_true", help="of the process, on a machine with other work")
    parser.add_argument("--out", type=Path, default=Path("bench_collect.json"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = ModelConfig(
        dim=args.dim, n_layers=args.layers, n_heads=args.heads, vocab_size=args.vocab, ffn_dim=args.ffn_dim,
        max_seqlen=args.seq_len,
    )  # fmt: skip
    sparse = TopKConfig(k=args.k, n_dense_tail=min(2, args.layers - 1))
    cut = ReadTopK(k=args.k)
    print(
        f"{device.type}, {dtype}, {torch.get_num_threads()} threads, D {args.dim}, L {args.layers}, "
        f"F {config.ffn_width}, k {args.k}, V {args.vocab}, {args.batch} x {args.seq_len} tokens a pass, "
        f"{args.rounds} passes, {'CPU' if args.cpu_time else 'wall'} time"
    )
    print("| reading | over the blocks | over blocks and logits | first pass | tokens/s | tables, GB |")
    print("|---|---|---|---|---|---|")
    results = []
    for name, topk, alpha, through in (
        ("TopK, dense tail 2", sparse, 0.0, None),
        ("dense", None, None, None),
        (f"dense read through k = {args.k}", None, None, cut),
        ("TopK at alpha = 0.5", sparse, 0.5, None),
    ):
        model = build_model(config, topk, "cpu").to(device=device, dtype=dtype).eval()
        if alpha is not None:
            set_alpha(model, alpha)
        plans = plan_layers(args.layers, topk, alpha, "post", through)
        gigabytes = sum(layer_bytes(plan, args.dim, args.vocab, SETTINGS) for plan in plans) / 1e9
        work = LayerPass(
            model, plans, range(args.layers), np.arange(args.vocab), SETTINGS, alpha=alpha, site="post", device=device
        )  # fmt: skip
        blocks, logits, first, speed = measure(model, work, args, device)
        print(f"| {name} | {blocks:.3f} | {logits:.3f} | {first:.2f} | {speed:,.0f} | {gigabytes:.2f} |", flush=True)
        results.append(
            {"reading": name, "blocks": blocks, "logits": logits, "first": first, "tokens_per_second": speed}
        )
    write_json(args.out, vars(args), results)


def measure(
    model: Transformer, work: LayerPass, args: argparse.Namespace, device: torch.device
) -> tuple[float, float, float, float]:
    """(ratio over the blocks, over blocks and logits, of the first pass over the blocks; tokens/s of collecting)."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, args.vocab + 1)
    seconds: list[list[float]] = []
    size = args.batch * args.seq_len
    for round_ in range(args.rounds + 1):
        tokens = rng.choice(args.vocab, (args.batch, args.seq_len), p=weights / weights.sum())
        positions = (round_ * size + np.arange(size)).reshape(tokens.shape)
        on_device = torch.from_numpy(tokens).to(device)

        def forward(on_device: torch.Tensor = on_device) -> None:
            with tap(model, [args.layers - 1], lambda *_: None) as run:  # ends after the last block
                run(on_device)

        @torch.no_grad()
        def with_logits(on_device: torch.Tensor = on_device) -> None:
            model(on_device)

        def collect(tokens: np.ndarray = tokens, positions: np.ndarray = positions) -> None:
            for _ in work.run([(tokens, positions, None)]):
                pass

        if round_ == 0:
            forward()  # warm up
        seconds.append([timed(run, device, args.cpu_time) for run in (forward, collect, with_logits)])
    steady = seconds[len(seconds) // 4 :]
    return (
        statistics.median(c / f for f, c, _ in steady),
        statistics.median(c / w for _, c, w in steady),
        seconds[0][1] / seconds[0][0],
        size / statistics.median(c for _, c, _ in steady),
    )


def timed(run: Callable[[], None], device: torch.device, cpu_time: bool) -> float:
    clock = time.process_time if cpu_time else time.perf_counter
    began = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


if __name__ == "__main__":
    main()
