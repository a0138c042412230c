"""Cross-entropy of the head, forward and backward: ours (chunked, gradients made in the forward pass) against the
plain form, chunks recomputed in the backward, and torch's own `F.linear_cross_entropy` where there is one.

    python scripts/bench_loss.py [--tokens 2048 --dim 256 --vocab 32000 --chunk 1024 --rounds 7]

Prints median time and peak memory, each as a ratio to the plain form of the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmarking import alternate, memory_of, peak_memory, write_json
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from topklm.model import linear_cross_entropy

DEFAULTS = {"tokens": 2048, "dim": 256, "vocab": 32000, "chunk": 1024, "rounds": 7}


def plain(h: Tensor, w: Tensor, t: Tensor, chunk: int) -> Tensor:
    return F.cross_entropy((h @ w.T).float(), t, reduction="sum")


def recomputed(h: Tensor, w: Tensor, t: Tensor, chunk: int) -> Tensor:
    parts = zip(h.split(chunk), t.split(chunk), strict=True)
    return torch.stack([checkpoint(plain, a, w, b, chunk, use_reentrant=False) for a, b in parts]).sum()


def torchs(h: Tensor, w: Tensor, t: Tensor, chunk: int) -> Tensor:
    return F.linear_cross_entropy(h, w, t, reduction="sum")


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "plain": plain, "ours": linear_cross_entropy, "recomputed": recomputed,
}  # fmt: skip
if hasattr(F, "linear_cross_entropy"):
    FORMS["torch"] = torchs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path("bench_loss.json"))
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        run = make(args)
        print(peak_memory(lambda: run(args.memory_of)))
        return
    memory = {name: memory_of("--memory-of", name) for name in FORMS}  # before this process grows
    run = make(args)
    times = alternate({name: partial(run, name) for name in FORMS}, args.rounds)
    print(f"{args.tokens} tokens, D {args.dim}, V {args.vocab}, chunk {args.chunk}: time and peak memory, x plain")
    results = []
    for name in FORMS:
        ratio = times.ratio(name, "plain")
        print(f"  {name:11s} {ratio:6.2f}   {memory[name] / memory['plain']:6.2f}")
        results.append({"form": name, "time": ratio, "memory": memory[name] / memory["plain"]})
    write_json(args.out, vars(args), results)


def make(args: argparse.Namespace) -> Callable[[str], None]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    h = torch.randn(args.tokens, args.dim, device=device, dtype=dtype, requires_grad=True)
    w = torch.randn(args.vocab, args.dim, device=device, dtype=dtype, requires_grad=True)
    t = torch.randint(0, args.vocab, (args.tokens,), device=device)

    def run(name: str) -> None:
        FORMS[name](h, w, t, args.chunk).backward()
        h.grad = w.grad = None

    return run


if __name__ == "__main__":
    main()
