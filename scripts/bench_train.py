"""What a training step costs: TopK over its dense twin, and both against transformers and Meta Lingua, in one run.

    python scripts/bench_train.py [--dim 128 --layers 6 --k 16 --batch 8 --seq-len 256 --vocab 4096 --rounds 9]
    PYTHONPATH=../lingua python scripts/bench_train.py            # with Lingua's model, loss and optimizer
    python scripts/bench_train.py --grow                          # how the step grows with D, k, L and T
    python scripts/bench_train.py --dim 2048 --layers 24 --heads 16 --ffn-dim 5632 --k 64 --batch 16 --seq-len 2048 \
        --vocab 32000 --compile                                   # the goal of 55 % MFU, on one H200

A step is a whole one: forward, backward, clipping, fused AdamW (the others' own default too), on the same tokens.
Ours is wrapped as `apps.train` wraps it: fp32 on a CPU, bf16 with fp32 master weights on a GPU.
`x dense`: time over the dense twin's, the median of the ratios within a round. `memory`: the most that training needs
(weights, optimizer, activations), beyond what a tiny model does. MFU = tokens/s * FLOP / peak with
FLOP = 6 (P - V D [tied: + V D]) + 12 L T H d a token, where the peak is known (`topklm/train/throughput.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarking import Times, alternate, exponent, headline, memory_of, peak_memory, table, write_json

from topklm.model import ModelConfig, build_model
from topklm.model import linear as products
from topklm.sparsity import TopKConfig, set_alpha
from topklm.train.optim import OptimConfig, build_optimizer
from topklm.train.parallel import DistributedConfig, World, parallelize, start, world_from_env
from topklm.train.throughput import flops_per_token, mfu, peak_flops

Step = Callable[[], None]
SIZES = {"dim": 128, "layers": 6, "heads": 4, "k": 16, "batch": 8, "seq_len": 256, "vocab": 4096}
GROWTH = {"dim": (64, 128, 256, 512), "k": (4, 16, 64), "layers": (4, 8, 16), "seq_len": (128, 256, 512, 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--ffn-dim", type=int)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--compile", action="store_true", help="our blocks, and Lingua's")
    parser.add_argument("--checkpointing", default="none", choices=("none", "selective", "full"), help="of our blocks")
    parser.add_argument("--cpu-time", action="store_true", help="where the machine has other work")
    parser.add_argument("--grow", action="store_true", help="TopK and dense alone, over D, k, L and T")
    parser.add_argument("--out", type=Path, default=Path("bench_train.json"))
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(measure_memory(args))
        return
    print(headline())
    results = grow(args) if args.grow else compare(args)
    write_json(args.out, vars(args), results)


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    names = [name for name in args.variants if available(name)]
    memory = {name: memory_of("--memory-of", name) for name in names}  # before this process grows
    world = open_world(args)
    runs = {name: VARIANTS[name](args, world) for name in names}
    times = alternate(runs, args.rounds, warm_up=2, cpu_time=args.cpu_time)
    config, tokens, peak = model_config(args), args.batch * args.seq_len, peak_flops(world.device)
    flops = flops_per_token(config, args.seq_len)
    print(f"{config.n_params / 1e6:.1f} M parameters, {tokens} tokens a step, {flops / 1e6:.1f} MFLOP a token")
    results = []
    for name in names:
        rate = tokens / times.median(name)
        figures = {"variant": name, "tokens_per_second": rate, "mfu": mfu(rate, flops, peak), "memory": memory[name]}
        if "dense" in names:
            low, high = times.spread(name, "dense")
            figures |= {"over_dense": times.ratio(name, "dense"), "quartiles": [low, high]}
            figures["memory_over_dense"] = memory[name] / memory["dense"]
        if "topk" in names:
            figures |= {"over_topk": times.ratio(name, "topk"), "topk_memory_over": memory["topk"] / memory[name]}
        results.append(figures)
    print_comparison(results)
    return results


def print_comparison(results: list[dict[str, Any]]) -> None:
    columns = {
        "tokens/s": lambda r: f"{r['tokens_per_second']:,.0f}",
        "MFU": lambda r: "-" if r["mfu"] is None else f"{r['mfu']:.1%}",
        "x dense (quartiles)": lambda r: f"{r['over_dense']:.3f} ({r['quartiles'][0]:.3f} - {r['quartiles'][1]:.3f})",
        "memory, MiB": lambda r: f"{r['memory'] / 2**20:,.0f}",
        "TopK: x its tokens/s": lambda r: f"{r['over_topk']:.2f}",
        "x its memory": lambda r: f"{r['topk_memory_over']:.2f}",
    }

    def cell(show: Callable[[dict[str, Any]], str], row: dict[str, Any]) -> str:
        with contextlib.suppress(KeyError):  # without the variant that it is compared to
            return show(row)
        return "-"

    rows = [[row["variant"], *(cell(show, row) for show in columns.values())] for row in results]
    print(table(["step", *columns], rows), flush=True)


def grow(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Each size alone, the others as given; tokens a step stay equal as long as a sequence fits."""
    world = open_world(args)
    results = []
    for axis, values in GROWTH.items():
        seconds = []
        for value in values:
            sized = argparse.Namespace(**{**vars(args), axis: value})
            sized.batch = max(1, args.batch * args.seq_len // sized.seq_len)
            sized.heads = max(1, sized.dim * args.heads // args.dim)
            runs = {name: VARIANTS[name](sized, world) for name in ("dense", "topk")}
            times: Times = alternate(runs, max(3, args.rounds // 3), cpu_time=args.cpu_time)
            per_token = times.median("topk") / (sized.batch * sized.seq_len)
            seconds.append(per_token)
            results.append(
                {axis: value, "topk_over_dense": times.ratio("topk", "dense"), "seconds_per_token": per_token}
            )
        power = exponent(values, seconds)
        results.append({"axis": axis, "exponent": power})
        rows = [
            (r[axis], f"{1e6 * r['seconds_per_token']:.0f}", f"{r['topk_over_dense']:.3f}")
            for r in results
            if axis in r
        ]
        print(
            f"\ntime of a token ~ {axis}^{power:.2f}\n" + table([axis, "us a token", "TopK x dense"], rows), flush=True
        )
    return results


def open_world(args: argparse.Namespace) -> World:
    return start(world_from_env(), distributed(args))


def distributed(args: argparse.Namespace) -> DistributedConfig:
    dtype = "bf16" if torch.cuda.is_available() else "fp32"
    return DistributedConfig(model_dtype=dtype, compile=args.compile, activation_checkpointing=args.checkpointing)  # type: ignore[arg-type]


def measure_memory(args: argparse.Namespace) -> float:
    world, make = open_world(args), VARIANTS[args.memory_of]
    tiny = {"dim": 32, "heads": 2, "layers": 3, "k": 4, "batch": 1, "seq_len": 8, "vocab": 64, "ffn_dim": None}
    make(argparse.Namespace(**vars(args) | tiny), world)()  # imports and libraries take theirs

    def run() -> None:
        step = make(args, world)
        for _ in range(3):
            step()

    return peak_memory(run)


def model_config(args: argparse.Namespace) -> ModelConfig:
    return ModelConfig(
        dim=args.dim, n_layers=args.layers, n_heads=args.heads, vocab_size=args.vocab, ffn_dim=args.ffn_dim,
        max_seqlen=args.seq_len,
    )  # fmt: skip


def ours(topk: bool, alpha: float = 0.0) -> Callable[[argparse.Namespace, World], Step]:
    def make(args: argparse.Namespace, world: World) -> Step:
        model = build_model(model_config(args), TopKConfig(k=args.k) if topk else None)
        if topk:
            set_alpha(model, alpha)
        parallelize(model.to(world.device), world, distributed(args))
        tokens = make_tokens(args, world)
        loss = lambda: model(tokens[:, :-1], tokens[:, 1:])  # noqa: E731
        return make_step(model, build_optimizer(model, OptimConfig()), loss)

    return make


def with_torchs_products(make: Callable[[argparse.Namespace, World], Step]) -> Callable[..., Step]:
    """Without oneDNN, where a CPU's products are its (`topklm/model/linear.py`)."""

    def made(args: argparse.Namespace, world: World) -> Step:
        step = make(args, world)

        def plain() -> None:
            kept, products.ONEDNN_IS_FASTER = products.ONEDNN_IS_FASTER, False
            step()
            products.ONEDNN_IS_FASTER = kept

        return plain

    return made


def transformers_step(args: argparse.Namespace, world: World) -> Step:
    """Hugging Face's Llama with its own loss, as its Trainer runs it: fused AdamW, autocast to bf16 on a GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=args.dim, intermediate_size=model_config(args).ffn_width, num_hidden_layers=args.layers,
        num_attention_heads=args.heads, vocab_size=args.vocab, max_position_embeddings=args.seq_len, use_cache=False,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(world.device)
    tokens = make_tokens(args, world)
    mixed = torch.autocast(world.device.type, torch.bfloat16, enabled=world.device.type == "cuda")

    def loss() -> torch.Tensor:
        with mixed:
            return model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss  # it shifts them itself

    return make_step(model, torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True), loss)


def lingua_step(args: argparse.Namespace, world: World) -> Step:
    """Meta Lingua's model, loss and optimizer; FSDP2 in bf16 and compiled blocks as ours."""
    from apps.main.transformer import LMTransformer, LMTransformerArgs  # Lingua's
    from lingua.optim import OptimArgs
    from lingua.optim import build_optimizer as theirs

    from topklm.model.lingua import lingua_sizes

    model = LMTransformer(LMTransformerArgs(vocab_size=args.vocab, **lingua_sizes(model_config(args))))
    model.init_weights()
    parallelize(model.to(world.device), world, distributed(args))
    optimizer, schedule = theirs(model, OptimArgs(), 1000)
    tokens = make_tokens(args, world)
    return make_step(model, optimizer, lambda: model(tokens[:, :-1], tokens[:, 1:]), schedule.step)


def make_tokens(args: argparse.Namespace, world: World) -> torch.Tensor:
    return torch.randint(0, args.vocab, (args.batch, args.seq_len + 1)).to(world.device)


def make_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], torch.Tensor],
    after: Callable[[], None] = lambda: None,
) -> Step:
    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after()
        optimizer.zero_grad()

    return step


VARIANTS: dict[str, Callable[[argparse.Namespace, World], Step]] = {
    "dense": ours(False),
    "topk": ours(True),
    "topk annealing": ours(True, 0.5),
    "topk, torch's products": with_torchs_products(ours(True)),
    "transformers": transformers_step,
    "lingua": lingua_step,
}
NEEDS = {"transformers": "transformers", "lingua": "lingua"}


def available(name: str) -> bool:
    """Whether the package of a variant is there; says so if not."""
    if name not in NEEDS or importlib.util.find_spec(NEEDS[name]):
        return True
    print(f"{name}: not on the path, left out", file=sys.stderr)
    return False


if __name__ == "__main__":
    logging.getLogger("xformers").setLevel(logging.ERROR)  # of kernels that it lacks on a CPU
    main()
