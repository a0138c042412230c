"""Tokens per second with the key-value cache against recomputing everything for each token, in one run.

python scripts/bench_generate.py [--device cpu] [--dtype fp32] [--threads 1] [--prompts 64 256] [--batches 1 8]
    [--new 32] [--rounds 3] [--out bench_generate.json]

Greedy, random weights, prompts of equal length: both do the same work per token but for the cache. The ratio is the
median over alternating rounds; above 1 the cache is faster. `decode` is the time of a token once the prompt is in the
cache. `same` is the share of the tokens on which both agree; in low precision TopK flips make them part. At the end
the share of rows (layer, sequence, position) whose selection differs between cache and full forward pass, by dtype.

python scripts/bench_generate.py --sparse 512 1024 2048 [--k 64] [--layers 6] [--batches 1 8] [--cpu-time]

A decoding step whose queries, keys and values are made from the entries that are not zero, against the plain one, at
these D (heads of 64, two dense blocks at the end). `pays after`: steps until the transposed copy has paid.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarking import alternate, table, write_json

from topklm.generate import SamplingConfig, generate
from topklm.generate.sparse_inputs import sparse_inputs
from topklm.model import KVCache, ModelConfig, Transformer, build_model
from topklm.sparsity import TopKConfig
from topklm.sparsity.activation import Activation
from topklm.sparsity.patch import sparse_states

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cached(model: Transformer, prompts: list[list[int]], new: int) -> list[list[int]]:
    config = SamplingConfig(max_tokens=new, temperature=0)
    return [samples[0].ids for samples in generate(model, None, prompts, config, batch_size=len(prompts))]


@torch.no_grad()
def recomputed(model: Transformer, prompts: list[list[int]], new: int) -> list[list[int]]:
    device = model.head_weight.device
    tokens = torch.tensor(prompts, device=device)
    for _ in range(new):
        last = torch.full((len(prompts), 1), tokens.shape[1] - 1, device=device)
        tokens = torch.cat((tokens, model(tokens, at=last).argmax(-1)), 1)
    return tokens[:, len(prompts[0]) :].tolist()


def timed(run: Callable[..., list[list[int]]], model: Transformer, prompts: list[list[int]], new: int):
    device = model.head_weight.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    ids = run(model, prompts, new)
    return time.perf_counter() - start, ids


def measure(model: Transformer, length: int, batch: int, new: int, rounds: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(length * 1000 + batch)
    prompts = torch.randint(0, model.config.vocab_size, (batch, length), generator=generator).tolist()
    ratios, with_cache, first, same = [], [], [], 0.0
    for round_ in range(rounds + 1):  # one to warm up
        seconds, ids = timed(cached, model, prompts, new)
        one, _ = timed(cached, model, prompts, 1)
        again, plain = timed(recomputed, model, prompts, new)
        same = sum(a == b for x, y in zip(ids, plain, strict=True) for a, b in zip(x, y, strict=True)) / (batch * new)
        if round_:
            ratios.append(again / seconds)
            with_cache.append(seconds)
            first.append(one)
    total, prefill = statistics.median(with_cache), statistics.median(first)
    return {
        "tokens_per_second": batch * new / total,
        "recomputed_tokens_per_second": batch * new / total / statistics.median(ratios),
        "ratio": statistics.median(ratios),
        "decode_ms_per_token": 1e3 * (total - prefill) / (new - 1),
        "prefill_ms": 1e3 * prefill,
        "same": same,
    }


class Selections:
    """Records what the sparse blocks select, pass by pass."""

    def __init__(self, model: Transformer):
        self.parts: list[torch.Tensor] = []
        (self._state,) = sparse_states(model)

    def see(self, block: torch.nn.Module, activation: Activation, x: torch.Tensor) -> None:
        self.parts.append(activation.selected(x))  # [B, T, D]

    def of(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What `run` returns, and the selections of its passes, joined along T: [layers, B, T, D]."""
        self.parts, self._state.recorder = [], self
        out = run()
        self._state.recorder = None
        passes = [p.shape[1] for p in self.parts]
        n = next((i for i, (a, b) in enumerate(itertools.pairwise(passes), 1) if a != b), len(passes))
        return out, torch.stack([torch.cat(self.parts[layer::n], 1) for layer in range(n)])


@torch.no_grad()
def parity(model: Transformer, length: int, prefill: int, batch: int) -> tuple[float, float]:
    """(share of selections that differ, largest difference of logits) of cache and full pass over the same tokens."""
    device, vocab = model.head_weight.device, model.config.vocab_size
    tokens = torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
    cache = KVCache(model.config, batch, length, device=device, dtype=model.head_weight.dtype)
    parts = tokens.split([prefill, *[1] * (length - prefill)], dim=1)
    selections = Selections(model)
    full, expected = selections.of(lambda: model(tokens))
    cached, chosen = selections.of(lambda: torch.cat([model(part, cache=cache) for part in parts], 1))
    differ = (chosen != expected).any(-1)[:, :, prefill:]
    return differ.double().mean().item(), (cached - full)[:, prefill:].abs().max().item()


def decoder(model: Transformer, prompts: torch.Tensor, new: int) -> Callable[[], torch.Tensor]:
    """Decodes `new` tokens greedily after prompts [B, T], again and again; gives the last logits [B, V]."""
    weight = model.head_weight
    cache = KVCache(model.config, len(prompts), prompts.shape[1] + new, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        first = model(prompts, cache=cache)[:, -1]

    @torch.no_grad()
    def decode() -> torch.Tensor:
        cache.rewind([prompts.shape[1]] * len(prompts))
        logits = first
        for _ in range(new):
            logits = model(logits.argmax(-1, keepdim=True), cache=cache)[:, 0]
        return logits

    return decode


def sparse_over_dense(dim: int, args: argparse.Namespace) -> Iterator[dict[str, float | None]]:
    """A row of the table for every batch."""
    config = ModelConfig(
        dim=dim, n_layers=args.layers, n_heads=dim // 64, vocab_size=args.vocab, max_seqlen=args.prompts[0] + args.new
    )
    dense = build_model(config, TopKConfig(k=args.k)).to(args.device, DTYPES[args.dtype]).eval()
    sparse = copy.deepcopy(dense, {id(parameter): parameter for parameter in dense.parameters()})  # the same weights
    began = time.perf_counter()
    with sparse_inputs(sparse, "always", rows=1, steps=1) as blocks:
        seconds = time.perf_counter() - began
        for batch in args.batches:
            generator = torch.Generator().manual_seed(batch)
            prompts = torch.randint(0, args.vocab, (batch, args.prompts[0]), generator=generator).to(args.device)
            runs = {"dense": decoder(dense, prompts, args.new), "sparse": decoder(sparse, prompts, args.new)}
            differ = (runs["dense"]() - runs["sparse"]()).abs().max().item()
            times = alternate(runs, args.rounds, cpu_time=args.cpu_time)
            saved = (times.median("dense") - times.median("sparse")) / args.new
            low, high = times.spread("dense", "sparse")
            yield {
                "dim": dim, "batch": batch, "blocks": blocks, "ms": 1e3 * times.median("dense") / args.new,
                "ratio": times.ratio("dense", "sparse"), "low": low, "high": high, "logits": differ,
                "copy_ms": 1e3 * seconds, "pays_after": seconds / saved if saved > 0 else None,
            }  # fmt: skip


def print_sparse(args: argparse.Namespace) -> None:
    rows = [row for dim in args.sparse for row in sparse_over_dense(dim, args)]
    columns = ["D", "rows", "blocks", "ms a step", "x (quartiles)", "pays after", "largest difference of logits"]
    print(f"L = {args.layers}, k = {args.k}, V = {args.vocab}, {args.device}, {args.dtype}, {args.threads} threads")
    shown = [
        [r["dim"], r["batch"], r["blocks"], f"{r['ms']:.1f}", f"{r['ratio']:.2f} ({r['low']:.2f} - {r['high']:.2f})",
         "never" if r["pays_after"] is None else f"{r['pays_after']:.0f} steps", f"{r['logits']:.1g}"] for r in rows
    ]  # fmt: skip
    print(table(columns, shown))
    write_json(args.out, vars(args), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=None)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 256], help="tokens of a prompt")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new", type=int, default=32, help="tokens of a completion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sparse", type=int, nargs="+", metavar="D", help="sparse inputs against plain ones instead")
    parser.add_argument("--cpu-time", action="store_true", help="of the process, for busy machines; with --sparse")
    parser.add_argument("--out", type=Path, default=Path("bench_generate.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.sparse:
        return print_sparse(args)
    config = ModelConfig(
        dim=args.dim, n_layers=args.layers, n_heads=args.heads, n_kv_heads=args.kv_heads, vocab_size=args.vocab,
        max_seqlen=max(args.prompts) + args.new,
    )  # fmt: skip
    models = {"dense": None, f"TopK k={args.k}": TopKConfig(k=args.k)}
    rows = []
    print(f"D = {args.dim}, L = {args.layers}, {args.device}, {args.dtype}, {args.threads} threads, {args.new} tokens")
    print("| model | prompt | batch | tokens/s, cache | recomputed | ratio | ms per decoded token | same |")
    print("|---" * 8 + "|")
    for name, topk in models.items():
        model = build_model(config, topk).to(args.device, DTYPES[args.dtype]).eval()
        for length in args.prompts:
            for batch in args.batches:
                row = measure(model, length, batch, args.new, args.rounds)
                rows.append({"model": name, "prompt": length, "batch": batch, **row})
                print(
                    f"| {name} | {length} | {batch} | {row['tokens_per_second']:.0f} | "
                    f"{row['recomputed_tokens_per_second']:.0f} | {row['ratio']:.1f} | "
                    f"{row['decode_ms_per_token']:.2f} | {row['same']:.3f} |",
                    flush=True,
                )
    print("| dtype | rows that select differently | largest difference of logits |\n|---|---|---|")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        differ, most = parity(model.to(dtype), max(args.prompts), max(args.prompts) // 2, 4)
        rows.append({"dtype": str(dtype), "differ": differ, "logits": most})
        print(f"| {str(dtype).removeprefix('torch.')} | {differ:.2%} | {most:.2g} |", flush=True)
    write_json(args.out, vars(args), rows)


if __name__ == "__main__":
    main()
