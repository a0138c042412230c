"""What a checkpoint costs a run: how long training stands still for one, written at once and in the background.

    python scripts/bench_checkpoint.py [--dim 512 --layers 6 --heads 8 --batch 4 --rounds 5 --dir /some/disk]

With the store of `apps.train`: files, hashes, everything on the disk before the rename. In steps of training at these
sizes: `stall` is how long `save` takes to return, `slower` by how much the steps beside a save in the background take
longer until it is done, `restore` reading all of it back. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_train import SIZES, distributed, make_step, make_tokens, model_config, open_world
from benchmarking import headline, table, write_json

from topklm.checkpoint import CheckpointConfig, CheckpointStore
from topklm.model import build_model
from topklm.sparsity import TopKConfig
from topklm.train.optim import OptimConfig, build_optimizer
from topklm.train.parallel import new_gloo_group, parallelize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (SIZES | {"dim": 512, "heads": 8, "k": 64, "batch": 4}).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--ffn-dim", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to write; a temporary directory if not given")
    parser.add_argument("--out", type=Path, default=Path("bench_checkpoint.json"))
    parser.set_defaults(compile=False, checkpointing="none")
    args = parser.parse_args()
    print(headline())
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        results = measure(args, Path(directory))
    rows = [[r["save"], *(f"{r[key]:.2f}" for key in ("stall", "slower", "restore"))] for r in results]
    print(table(["save", "stall, steps", "slower, steps", "restore, steps"], rows))
    write_json(args.out, vars(args), results)


def measure(args: argparse.Namespace, directory: Path) -> list[dict[str, Any]]:
    world = open_world(args)
    model = build_model(model_config(args), TopKConfig(k=args.k))
    parallelize(model.to(world.device), world, distributed(args))
    optimizer, tokens = build_optimizer(model, OptimConfig()), make_tokens(args, world)
    train = make_step(model, optimizer, lambda: model(tokens[:, :-1], tokens[:, 1:]))
    (tokenizer := directory / "tokenizer").mkdir()
    train()  # the optimizer has its state from here on
    found: dict[str, dict[str, list[float]]] = {}
    for round_ in range(args.rounds + 1):
        for kind in ("sync", "async"):  # in turns
            config = CheckpointConfig(async_save=kind == "async")
            group = new_gloo_group(world, distributed(args)) if world.mesh is not None else None
            store = CheckpointStore(directory / kind, config, world.rank, group)
            step = timed(train)
            stall = timed(lambda store=store: store.save(1, model, optimizer, {}, {}, tokenizer))
            began, beside = time.perf_counter(), 0
            while store._writing is not None and store._writing.is_alive():
                train()
                beside += 1
            slower = time.perf_counter() - began - beside * step
            store.finish()
            (path,) = (directory / kind).glob("0*")
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            restore = timed(lambda store=store, path=path: store.restore(path, model, optimizer, {}))
            shutil.rmtree(directory / kind)
            if round_:  # the first one warms up
                kept = found.setdefault(kind, {"stall": [], "slower": [], "restore": []})
                for name, seconds in (("stall", stall), ("slower", slower), ("restore", restore)):
                    kept[name].append(seconds / step)
    print(f"{model.config.n_params / 1e6:.1f} M parameters, {size / 2**20:,.0f} MiB a checkpoint, a step {step:.2f} s")
    return [{"save": kind} | {k: statistics.median(v) for k, v in kept.items()} for kind, kept in found.items()]


def timed(run: Any) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
