"""What Meta Lingua writes is read: every form of its checkpoints, its params.json, its tokenizer. And what is not.

Layouts are made with torch (lingua_layout.py); at the end genuine Lingua writes them, where it is on PYTHONPATH.
"""

import dataclasses
import json
import logging
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.genuine import checkout, run_genuine
from tests.unit.checkpoint.lingua_layout import TIED, TINY, consolidate, tokens, train_args, write_checkpoint
from topklm import load_model
from topklm.checkpoint import read_weights, resolve, why_not_continued
from topklm.checkpoint.dcp import load_weights
from topklm.config import build
from topklm.errors import CheckpointError, ConfigError
from topklm.model import build_model
from topklm.model.lingua import lingua_sizes
from topklm.train import TrainConfig
from topklm.train.settle import settle

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(params=[TINY, TIED], ids=["untied", "tied"])
def run(request, tmp_path):
    """(dump_dir of a Lingua run whose third and newest checkpoint is cut short; the model of the second)."""
    saves = tmp_path / "dump" / "checkpoints"
    write_checkpoint(saves / "0000000010", request.param, step=10)
    model = write_checkpoint(saves / "0000000020", request.param, step=20)
    write_checkpoint(saves / "0000000030", request.param, step=30, whole=False)
    return tmp_path / "dump", model


def test_every_form_loads(run, tmp_path):
    dump, model = run
    newest = dump / "checkpoints" / "0000000020"
    file = consolidate(newest) / "consolidated.pth"
    for place in (dump, dump / "checkpoints", newest, newest / "consolidated", file):
        loaded, tokenizer, config = load_model(place)
        assert torch.equal(loaded(tokens()), model(tokens())), place
        assert (config.step, config.topk, config.alpha, config.sha256) == (20, None, None, None)
        assert config.run["name"] == "large_lm"
        assert tokenizer.decode(tokenizer.encode("Lingua")) == "Lingua"
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "params.json").write_text((newest / "params.json").read_text())
    weights = dict(model.state_dict())
    if config.model.weight_tying:
        weights["output.tied_module.weight"] = weights["tok_embeddings.weight"]
    torch.save({name: w.bfloat16() for name, w in weights.items()}, bare / "bare.pth")
    dcp.save(weights, checkpoint_id=bare / "dcp", no_dist=True)  # Lingua's load_from_checkpoint(model_key="")
    (bare / "dcp" / "params.json").write_text((newest / "params.json").read_text())
    assert torch.equal(load_model(bare / "dcp")[0](tokens()), model(tokens()))
    halved, _, config = load_model(bare / "bare.pth")
    assert config.step is None
    assert {w.dtype for w in read_weights(bare / "bare.pth", halved)[0].values()} == {torch.float32}
    for name, weight in halved.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name].bfloat16().float()), name


def test_a_topk_section_in_its_params_makes_a_topk_model(tmp_path):
    """A Lingua whose train.py was given sparsify writes one (docs/lingua.md)."""
    topk = {"k": 5, "n_dense_tail": 1, "anneal_steps": 40}
    write_checkpoint(tmp_path / "ckpt", TINY, step=10, topk=topk)
    _, _, config = load_model(tmp_path / "ckpt")
    assert (config.topk.k, config.alpha) == (5, 0.75)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"tokenizer": {"name": "sp", "path": "/nowhere/tokenizer.model"}}}, "/nowhere/tokenizer.model"),
        ({"data": {"tokenizer": {"name": "mock", "path": None}}}, "names mock"),
        ({"model": train_args(dataclasses.replace(TINY, vocab_size=300))["model"]}, "has 258 ids, the model has 300"),
    ],
)
def test_a_tokenizer_that_is_not_at_hand_is_told(changes, message, tmp_path, caplog):
    config = build(type(TINY), changes["model"]) if "model" in changes else TINY
    write_checkpoint(tmp_path / "ckpt", config, **changes)
    with caplog.at_level(logging.WARNING):
        assert load_model(tmp_path / "ckpt")[1] is None
    assert message in caplog.text


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"vocab_size": -1}, "leaves model.vocab_size open"),
        ({"sliding_window": 512}, "no sliding-window attention"),
        ({"n_layers": 2}, "9 parameters differ"),
        (
            {"multiple_of": 16, "ffn_dim_multiplier": 2.0},
            r"layers.0.feed_forward.w1.weight: \(64, 24\) in the checkpoint",
        ),
        ({"own_key": 1}, "unknown key"),
    ],
)
def test_params_that_are_not_those_of_the_weights(model, message, tmp_path):
    changed = train_args(TINY)["model"] | model
    write_checkpoint(tmp_path / "ckpt", TINY, model=changed)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "ckpt")


class Evil:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_of_a_stranger_runs_no_code(tmp_path):
    write_checkpoint(tmp_path / "ckpt", TINY)
    file = consolidate(tmp_path / "ckpt") / "consolidated.pth"
    harm = tmp_path / "harm"
    torch.save({"model": {"norm.weight": Evil(harm)}}, file)
    (tmp_path / "ckpt" / ".metadata").write_bytes(pickle.dumps(Evil(harm)))
    for place in (file, tmp_path / "ckpt"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_model(place)
    assert not harm.exists()


def test_bytes_that_pretend_to_be_a_tensor_run_no_code(tmp_path):
    """torch unpickles entries of bytes without restraint; a forged size does not make them weights."""
    weights = {name: torch.zeros(t.shape) for name, t in build_model(TINY, None).state_dict().items()}
    dcp.save(
        {"model": weights | {"norm.weight": Evil(tmp_path / "harm")}}, checkpoint_id=tmp_path / "ckpt", no_dist=True
    )
    (tmp_path / "harm").unlink(missing_ok=True)
    file = tmp_path / "ckpt" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    metadata.state_dict_metadata["model.norm.weight"].size = torch.Size([TINY.dim])
    file.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="no tensor"):
        load_weights(weights, tmp_path / "ckpt")
    assert not (tmp_path / "harm").exists()


def test_a_lingua_run_is_not_gone_on_with_and_the_reason_is_told(tmp_path):
    saves = tmp_path / "dump" / "checkpoints"
    write_checkpoint(saves / "0000000010", TINY)
    base = {"model": {"dim": 24, "n_heads": 4}, "data": {"root_dir": "x", "sources": {"a": 1}}}

    def problem(**more):
        with pytest.raises(ConfigError, match="means nothing to the order of batches here") as caught:
            settle(build(TrainConfig, base | more), vocab_size=258, world_size=1)
        return caught.value.problems[0].key

    assert problem(dump_dir=str(tmp_path / "dump")) == "dump_dir"
    init = {"init_ckpt_path": str(tmp_path / "dump"), "continue_training_from_init": True}
    assert problem(dump_dir=str(tmp_path / "new"), checkpoint=init) == "checkpoint.continue_training_from_init"
    assert why_not_continued(saves) is None


def test_broken_checkpoints_of_ours_are_not_taken_for_linguas(tmp_path):
    saves = tmp_path / "checkpoints"
    write_checkpoint(saves / "0000000010", TINY)
    write_checkpoint(saves / "0000000020", TINY)
    (saves / "0000000020" / "files.json").write_text("{}")
    with pytest.raises(CheckpointError, match="every checkpoint of this run is broken"):
        resolve(tmp_path)


WRITE = """
from apps.main.transformer import LMTransformer, LMTransformerArgs
from dataclasses import asdict
import numpy as np
from omegaconf import OmegaConf
import lingua.checkpoint as C
from apps.main.train import TrainArgs, TrainState
from lingua.args import dataclass_from_dict
from lingua.data import PackTokensState, init_dataloader_state_from_args
from lingua.optim import build_optimizer
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
for name, params in json.loads(Path("cases.json").read_text()).items():
    args = dataclass_from_dict(TrainArgs, params)
    args.checkpoint.path = str(Path(name, "checkpoints"))
    torch.manual_seed(args.model.seed)
    model = LMTransformer(args.model)
    model.init_weights()
    optimizer, scheduler = build_optimizer(model, args.optim, args.steps)
    x = torch.load("tokens.pt", weights_only=True)
    manager = C.CheckpointManager.instantiate_and_make_dir(args.checkpoint)
    Path("source", "a").mkdir(parents=True, exist_ok=True)
    Path("source", "a", "a.chunk.00.jsonl").write_text('{"text": "x"}\\n')
    args.data.root_dir, args.data.sources = "source", {"a": 1.0}
    state = TrainState(step=0, acc_step=0, scheduler=scheduler,
                       data_loader_state=init_dataloader_state_from_args(args.data, 0, 1))
    for _ in range(2):
        model(x, x).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        state.step += 1
    manager.save(model, optimizer, state, args)
    C.consolidate_checkpoints(str(Path(name, "checkpoints", "0000000002")))
    torch.save(model(x).detach(), Path(name, "logits.pt"))
"""


def test_what_genuine_lingua_writes(tmp_path):
    """Its own CheckpointManager and consolidation; then ours, from every form."""
    checkout()
    head_dim = dataclasses.replace(TINY, head_dim=10, ffn_dim_multiplier=1.3)
    configs = {"untied": TINY, "tied": TIED, "head_dim": head_dim}
    cases = {}
    for name, config in configs.items():
        model = lingua_sizes(config) | {"seed": 3, "vocab_size": 258, "weight_tying": config.weight_tying}
        data = {"tokenizer": {"name": "bytes"}, "seq_len": 16, "batch_size": 2}
        cases[name] = {"model": model, "data": data, "optim": {"lr": 0.01, "warmup": 0, "scheduler": "constant"},
                       "checkpoint": {"dump": {"every": 2}, "eval": {"every": 2}}}  # fmt: skip
        (tmp_path / name).mkdir()
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    torch.save(tokens(), tmp_path / "tokens.pt")
    run_genuine(WRITE, cwd=tmp_path)
    for name, config in configs.items():
        expected = torch.load(tmp_path / name / "logits.pt", weights_only=True)
        checkpoint = tmp_path / name / "checkpoints" / "0000000002"
        for place in (
            tmp_path / name,
            checkpoint,
            checkpoint / "consolidated",
            checkpoint / "consolidated/consolidated.pth",
        ):
            model, tokenizer, loaded = load_model(place)
            torch.testing.assert_close(model(tokens()), expected, atol=1e-5, rtol=1e-5)
            assert (loaded.step, tokenizer.vocab_size, loaded.model.weight_tying) == (2, 258, config.weight_tying)
        assert why_not_continued(checkpoint) is not None
        weights, _ = read_weights(checkpoint, build_model(loaded.model, None, "meta"))
        assert torch.equal(weights["norm.weight"], model.state_dict()["norm.weight"])
