"""A working directory in which everything is right: documents, prepared data, a run, its bundle, its other forms.

Each case gets a copy and spoils one thing. Sizes are tiny: D = 16, L = 3, 258 bytes as tokens.
"""

from __future__ import annotations

import gzip
import json
import logging
import shutil
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from tests.unit.data.corpus import documents
from tests.unit.data.synthetic import write_source
from topklm.checkpoint import CheckpointConfig, CheckpointStore
from topklm.checkpoint.integrity import FILES, digest
from topklm.config import build, save_config, to_dict
from topklm.data import open_data
from topklm.data.tokenizers import ByteTokenizer
from topklm.interp import CollectConfig, collect
from topklm.model import build_model
from topklm.model.huggingface import config_to_hf, weights_to_hf
from topklm.train import TrainConfig
from topklm.train.optim import build_optimizer
from topklm.train.rng import rng_state
from topklm.train.settle import settle

STEP = "run/checkpoints/0000000010"
TRAIN = {
    "name": "small",
    "dump_dir": "new",
    "steps": 10,
    "data": {"root_dir": "data", "sources": {"web": 1.0}, "seq_len": 16, "global_batch_size": 4, "load_async": False},
    "model": {"dim": 16, "n_layers": 3, "n_heads": 2, "multiple_of": 8},
    "topk": {"k": 4, "n_dense_tail": 1},
    "optim": {"lr": 0.001, "warmup": 2},
    "distributed": {"model_dtype": "fp32"},
}
PREPARE = {
    "out_dir": "prepared",
    "sources": {"web": {"kind": "jsonl", "path": "docs.jsonl"}},
    "tokenizer": {"name": "bytes"},
    "workers": 1,
}


def build_place(root: Path) -> None:
    """Make everything in `root`, which is the working directory."""
    texts = documents(60)
    (root / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (root / "docs.jsonl.gz").write_bytes(gzip.compress((root / "docs.jsonl").read_bytes(), mtime=0))
    (root / "train.yaml").write_text(yaml.safe_dump(TRAIN, sort_keys=False))
    (root / "prepare.yaml").write_text(yaml.safe_dump(PREPARE, sort_keys=False))
    tokenizer = ByteTokenizer()
    ids = [tokenizer.encode(text, bos=True, eos=True) for text in texts]
    for source, part in (("web", ids), ("books", ids[::2])):
        write_source(
            root / "data", source, part[6:], part[:6], tokenizer=tokenizer, max_tokens=4000, add_bos=True, n_bytes=len
        )
    _write_run(root)
    level = logging.getLogger("topklm").level
    logging.getLogger("topklm").setLevel(logging.ERROR)
    collect(CollectConfig(ckpt="run", out="bundle", tokens=256, context=16))
    logging.getLogger("topklm").setLevel(level)


def _write_run(root: Path) -> None:
    config = build(TrainConfig, {**TRAIN, "dump_dir": "run"})
    data = open_data(config.data)
    config = settle(config, vocab_size=data.vocab_size, world_size=1, tokenizer_dir=data.tokenizer_dir)
    model = build_model(config.model, config.topk)
    optimizer = build_optimizer(model, config.optim)
    sum(p.square().sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    state = {
        "step": 10, "acc_step": 0, "skipped_steps": 0, "data": {"fingerprint": data.fingerprint},
        "rng": rng_state(torch.device("cpu")),
    }  # fmt: skip
    store = CheckpointStore(root / "run" / "checkpoints", CheckpointConfig(), 0, None)
    store.save(10, model, optimizer, state, to_dict(config), data.tokenizer_dir)
    save_config(config, root / "run" / "config.yaml")
    line = {"global_step": 10, "loss/out": 2.5, "optim/total_tokens": 640}
    (root / "run" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    torch.save({"model": model.state_dict(), "step": 10}, root / "model.pth")
    shutil.copy(root / STEP / "params.json", root / "params.json")
    (root / "hf").mkdir()
    hf = {**config_to_hf(config.model), "max_position_embeddings": 16}
    (root / "hf" / "config.json").write_text(json.dumps(hf))
    save_file(
        {k: v.contiguous() for k, v in weights_to_hf(model.state_dict(), config.model).items()},
        root / "hf" / "model.safetensors",
    )


# How things are spoilt


def write(path: str, content: str | bytes) -> None:
    """A file with this content, and the directories above it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def edit_json(path: str, **changes: object) -> None:
    """Set top-level keys of a JSON file; `...` removes one."""
    content = {**json.loads(Path(path).read_text()), **changes}
    Path(path).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def cut(path: str, keep: float = 0.5) -> None:
    """Keep the beginning of a file only."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(len(content) * keep)])


def flip(path: str) -> None:
    """Change one bit in the middle."""
    content = bytearray(Path(path).read_bytes())
    content[len(content) // 2] ^= 1
    Path(path).write_bytes(content)


def lines(*records: object, name: str = "docs.jsonl") -> None:
    """A JSONL file of good documents and, after them, `records`: bytes as they are, the rest as JSON."""
    good = [{"text": text} for text in documents(20)]
    made = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in (*good, *records)]
    Path(name).write_bytes(b"\n".join(made) + b"\n")


def config_file(**changes: object) -> None:
    """train.yaml with other top-level keys."""
    write("train.yaml", yaml.safe_dump({**TRAIN, **changes}, sort_keys=False))


def again(directory: str, **params: object) -> None:
    """A checkpoint whose params.json says something else, with hashes that fit what is there."""
    edit_json(f"{directory}/params.json", **params)
    files = [p for p in Path(directory).rglob("*") if p.is_file() and p.name != FILES]
    write(f"{directory}/{FILES}", json.dumps({str(p.relative_to(directory)): digest(p) for p in files}))
