"""Runs in the layout that Meta Lingua leaves, made with torch alone: what its users bring."""

import dataclasses
import json

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_state_dict

from topklm.model import ModelConfig, build_model
from topklm.model.lingua import lingua_sizes

TINY = ModelConfig(dim=24, n_layers=3, n_heads=4, n_kv_heads=2, multiple_of=8, vocab_size=258, max_seqlen=16)
TIED = dataclasses.replace(TINY, weight_tying=True, ffn_dim_multiplier=0.7)


def train_args(config, **changes):
    """The content of params.json: Lingua's whole TrainArgs, or what of it matters."""
    model = lingua_sizes(config) | {"seed": 1, "vocab_size": config.vocab_size, "weight_tying": config.weight_tying,
                                    "sliding_window": None}  # fmt: skip
    return {
        "name": "large_lm", "dump_dir": "/somewhere/else", "seed": 777, "grad_acc_steps": 1, "gc_collect_freq": 1000,
        "probe_freq": None, "steps": 60000, "model": model, "optim": {"lr": 0.003}, "env": {"NCCL_DEBUG": "INFO"},
        "data": {"root_dir": "data", "sources": {"fineweb": 100.0}, "batch_size": 4, "seq_len": 16, "n_views": 2,
                 "add_bos": True, "add_eos": True, "tokenizer": {"name": "bytes", "path": None}},
        "distributed": {"dp_shard": 1, "fsdp_type": "no_shard", "model_dtype": "bf16"},
        "checkpoint": {"dump": {"every": 10, "keep": 3}, "eval": {"every": 10, "keep": -1}}, "async_eval_gpus": None,
    } | changes  # fmt: skip


def make_model(config, seed=0):
    """A native model and an optimizer that has taken a step."""
    model = build_model(dataclasses.replace(config, seed=seed), None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(tokens(), tokens()).backward()
    optimizer.step()
    return model, optimizer


def tokens():
    return torch.randint(0, 258, (2, 12), generator=torch.Generator().manual_seed(0))


def write_checkpoint(directory, config, *, step=10, whole=True, **changes):
    """One checkpoint directory; returns the model in it. Without `whole`, as Lingua leaves one when it is killed."""
    model, optimizer = make_model(config, seed=step)
    weights, moments = get_state_dict(model, optimizer)
    if config.weight_tying:
        weights["output.tied_module.weight"] = weights["tok_embeddings.weight"]
    directory.mkdir(parents=True)
    dcp.save({"model": weights, "optim": moments}, checkpoint_id=directory, no_dist=True)
    if whole:
        (directory / "params.json").write_text(json.dumps(train_args(config, **changes)))
        state = {"step": step, "acc_step": 0, "data_loader_state": {"it_state": {}}, "scheduler": {"last_epoch": step}}
        (directory / "train_state_00000.json").write_text(json.dumps(state))
    return model.eval()


def consolidate(directory):
    """What Lingua's evaluation adds to a checkpoint directory."""
    target = directory / "consolidated"
    target.mkdir()
    dcp_to_torch_save(directory, target / "consolidated.pth")
    (target / "params.json").write_text((directory / "params.json").read_text())
    return target
