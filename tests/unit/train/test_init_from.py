"""A run that starts from a trained model: what it takes, what it refuses, and that alpha = 1 is that model."""

import dataclasses
import json
import logging
import shutil

import pytest
import torch

from tests.unit.model.llama import VARIANTS, random_llama
from tests.unit.train.test_settle import store
from topklm import load_model, set_alpha
from topklm.config import build, to_dict
from topklm.data import open_data
from topklm.errors import ConfigError
from topklm.model import ModelConfig, RopeScaling
from topklm.model.huggingface import config_to_hf
from topklm.train import TrainConfig
from topklm.train.parallel import start, world_from_env
from topklm.train.settle import settle
from topklm.train.trainer import Trainer

SOURCE = dataclasses.replace(
    VARIANTS["gqa"], vocab_size=512, max_seqlen=256, norm_eps=1e-6, rope_scaling=RopeScaling(factor=4.0)
)


@pytest.fixture(scope="module")
def source(speeches, tmp_path_factory):
    """A Llama as transformers writes it, with the tokenizer of the prepared data."""
    pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("llama")
    random_llama(config_to_hf(SOURCE)).save_pretrained(directory)
    shutil.copy(speeches / "tokenizer.model", directory)
    return directory


def config(speeches, tmp_path, **changes):
    base = {
        "dump_dir": str(tmp_path / "run"), "steps": 10, "optim": {"lr": 1e-3, "warmup": 1},
        "data": {"root_dir": str(speeches), "sources": {"sotu": 1.0}, "batch_size": 2, "seq_len": 32,
                 "load_async": False},
        "topk": {"k": 6, "n_dense_tail": 1}, "distributed": {"model_dtype": "fp32"},
    }  # fmt: skip
    return build(TrainConfig, {**base, **changes})


def settled(config):
    data = open_data(config.data)
    return settle(config, vocab_size=data.vocab_size, world_size=1, tokenizer_dir=data.tokenizer_dir)


def problems(config):
    with pytest.raises(ConfigError) as caught:
        settled(config)
    return {problem.key: problem.message for problem in caught.value.problems}


def test_the_model_section_is_the_sources(speeches, source, tmp_path):
    taken = settled(config(speeches, tmp_path, init_from=str(source), model={"loss_chunk": 7, "seed": 3}))
    assert taken.model == dataclasses.replace(SOURCE, loss_chunk=7, seed=3)
    same = {"dim": 24, "n_kv_heads": 2, "head_dim": 6, "ffn_dim": 40, "vocab_size": 512}
    assert settled(config(speeches, tmp_path, init_from=str(source), model=same)).model == SOURCE
    longer = config(speeches, tmp_path, init_from=str(source), model={"max_seqlen": 300})
    assert settled(longer).model.max_seqlen == 300


def test_what_contradicts_the_source_is_told_at_once(speeches, source, tmp_path):
    wrong = config(
        speeches, tmp_path, init_from=str(source), topk={"k": 25, "n_dense_tail": 3},
        model={"dim": 32, "n_kv_heads": 1, "ffn_dim_multiplier": 2.0, "rope_scaling": {"factor": 2.0}, "loss_chunk": 0},
        distributed={"dp_shard": 3},
    )  # fmt: skip
    assert set(problems(wrong)) == {
        "model.dim", "model.n_kv_heads", "model.ffn_dim_multiplier", "model.rope_scaling", "distributed.dp_shard",
    }  # fmt: skip
    fits = config(speeches, tmp_path, init_from=str(source), topk={"k": 25, "n_dense_tail": 3}, model={"loss_chunk": 0})
    assert set(problems(fits)) == {"topk.k", "topk.n_dense_tail", "model.loss_chunk"}


def test_rules_about_the_model_wait_for_the_source_only(speeches, tmp_path):
    with pytest.raises(ConfigError, match="n_heads"):
        config(speeches, tmp_path)
    with pytest.raises(ConfigError, match=r"model\.n_layers: 'two'"):
        config(speeches, tmp_path, init_from="somewhere", model={"n_layers": "two"})
    with pytest.raises(ConfigError, match="init_from"):
        config(speeches, tmp_path, init_from="somewhere", checkpoint={"init_ckpt_path": "elsewhere"})


def test_a_source_that_is_none_is_a_problem_beside_others(speeches, tmp_path):
    wrong = config(speeches, tmp_path, init_from=str(tmp_path / "nothing"), distributed={"dp_shard": 3})
    assert set(problems(wrong)) == {"init_from", "distributed.dp_shard"}


def test_the_data_must_have_the_tokenizer_of_the_source(speeches, source, tmp_path, caplog):
    other = tmp_path / "other"
    shutil.copytree(source, other)
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {f"piece{i}": i for i in range(512)}
    (other / "tokenizer.model").unlink()
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="piece0")).save(str(other / "tokenizer.json"))
    told = problems(config(speeches, tmp_path, init_from=str(other)))
    assert set(told) == {"data.root_dir"}
    assert f"prepare the data with tokenizer={{name: hf, path: {other / 'tokenizer.json'}}}" in told["data.root_dir"]
    (other / "tokenizer.json").unlink()
    with caplog.at_level(logging.WARNING, "topklm.train"):
        assert settled(config(speeches, tmp_path, init_from=str(other))).model == SOURCE
    assert "brings no tokenizer" in caplog.text


def test_embeddings_may_be_padded_but_not_too_few(speeches, source, tmp_path):
    for vocab_size, fits in ((520, True), (511, False)):
        directory = tmp_path / str(vocab_size)
        hf = random_llama(config_to_hf(dataclasses.replace(SOURCE, vocab_size=vocab_size)))
        hf.save_pretrained(directory)
        shutil.copy(source / "tokenizer.model", directory)
        padded = config(speeches, tmp_path, init_from=str(directory))
        if fits:
            assert settled(padded).model.vocab_size == vocab_size
        else:
            assert "too few for the 512 ids" in problems(padded)["init_from"]


def test_a_resumed_run_does_not_need_its_source(speeches, source, tmp_path):
    first = settled(config(speeches, tmp_path, init_from=str(source)))
    store(first, tmp_path / "run")
    gone = config(speeches, tmp_path, init_from=str(tmp_path / "gone"), steps=20)
    assert settled(gone).model == first.model
    assert set(problems(dataclasses.replace(gone, model=ModelConfig(rope_theta=7.0)))) == {"model.rope_theta"}


@pytest.mark.parametrize(
    ("topk", "source_topk", "told"),
    [
        ({"k": 6, "n_dense_tail": 1}, None, None),
        ({"k": 6, "n_dense_tail": 1, "anneal_ratio": 0.0}, None, "from the first step"),
        ({"k": 6, "n_dense_tail": 1, "anneal_form": "relu"}, None, "anneal_form relu"),
        ({"k": 6, "n_dense_tail": 1}, {"k": 6, "n_dense_tail": 1, "alpha": 0}, "starts at 1"),
        ({"k": 6, "n_dense_tail": 1, "anneal_ratio": 0.0}, {"k": 6, "n_dense_tail": 1, "alpha": 0}, None),
        (None, {"k": 6, "n_dense_tail": 1, "alpha": 0}, "as a dense one"),
    ],
)
def test_what_is_likely_not_meant_is_remarked(speeches, source, tmp_path, caplog, topk, source_topk, told):
    directory = tmp_path / "source"
    shutil.copytree(source, directory)
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**raw, "topk": source_topk}))
    with caplog.at_level(logging.WARNING, "topklm.train"):
        settled(config(speeches, tmp_path, init_from=str(directory), topk=topk))
    assert (told in caplog.text) if told else not caplog.text


@pytest.mark.parametrize("form", ["blend", "identity"])
@pytest.mark.parametrize("key", ["init_from", "init_ckpt_path"])
def test_at_its_first_step_the_run_is_bit_for_bit_the_pretrained_model(speeches, source, tmp_path, form, key):
    given = {"init_from": str(source)} if key == "init_from" else {
        "checkpoint": {"init_ckpt_path": str(source)}, "model": to_dict(SOURCE),
    }  # fmt: skip
    run = settled(config(speeches, tmp_path, topk={"k": 6, "n_dense_tail": 1, "anneal_form": form}, **given))
    (tmp_path / "run").mkdir()
    trainer = Trainer(run, open_data(run.data), start(world_from_env(), run.distributed))
    dense, _, _ = load_model(source)
    tokens = torch.arange(3, 35)[None]
    assert torch.equal(trainer.model(tokens), dense(tokens))
    set_alpha(trainer.model, 0.0)
    assert not torch.equal(trainer.model(tokens), dense(tokens))
    trainer.run()
    wrote = json.loads((tmp_path / "run" / "provenance.json").read_text())["source"]
    assert wrote == {"path": str(source), "sha256": load_model(source)[2].sha256}
    Trainer(run, open_data(run.data), trainer.world).run()  # by another process, which does not read the source
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["source"] == wrote


def test_a_run_of_ours_is_a_source_too(speeches, source, tmp_path):
    topk = {"k": 6, "n_dense_tail": 1, "anneal_ratio": 0.0}
    first = settled(config(speeches, tmp_path / "first", init_from=str(source), topk=topk))
    (tmp_path / "first" / "run").mkdir(parents=True)
    Trainer(first, open_data(first.data), start(world_from_env(), first.distributed)).run()
    model, _, loaded = load_model(tmp_path / "first" / "run")
    assert (loaded.step, loaded.alpha, loaded.model) == (10, 0.0, SOURCE)
    second = settled(config(speeches, tmp_path, init_from=str(tmp_path / "first" / "run"), topk=topk))
    assert second.model == SOURCE
    trainer = Trainer(second, open_data(second.data), start(world_from_env(), second.distributed))
    tokens = torch.arange(3, 35)[None]
    assert torch.equal(trainer.model(tokens), model(tokens))
