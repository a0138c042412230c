"""`init_from` a Hugging Face directory, as a user runs it: on one rank and on two, resumed without its source."""

import shutil

import pytest
import torch

from tests.programs import metrics, run_app, torchrun
from tests.unit.model.llama import VARIANTS, random_llama
from topklm import load_model
from topklm.model.huggingface import config_to_hf

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def source(speeches, tmp_path_factory):
    """bf16 weights in several files, tied, with padded embeddings."""
    pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("llama")
    hf = random_llama({**config_to_hf(VARIANTS["tied"]), "vocab_size": 520}).bfloat16()
    hf.save_pretrained(directory, max_shard_size="20KB")
    shutil.copy(speeches / "tokenizer.model", directory)
    return directory


@pytest.fixture(scope="module")
def retrofit(tiny, source):
    """Arguments of a short run that starts from `source`; the sizes of `tiny` are left out."""
    kept = [arg for arg in tiny if not arg.startswith(("model.", "steps", "topk"))]
    return [*kept, f"init_from={source}", "steps=6", "topk={k: 6, n_dense_tail: 1, anneal_steps: 4}"]


@pytest.fixture(scope="module")
def on_one(retrofit, tmp_path_factory):
    dump_dir = tmp_path_factory.mktemp("one") / "run"
    run_app("apps.train", *retrofit, f"dump_dir={dump_dir}")
    return dump_dir


def test_the_first_loss_is_the_pretrained_models(retrofit, on_one, tmp_path):
    assert metrics(on_one, "topk/alpha") == {1: 1.0, 2: 0.75, 3: 0.5, 4: 0.25, 5: 0.0, 6: 0.0}
    run_app("apps.train", *retrofit, "topk=null", f"dump_dir={tmp_path / 'dense'}")
    dense, sparse = metrics(tmp_path / "dense"), metrics(on_one)
    assert sparse[1] == dense[1]  # alpha is 1: the same bits
    assert sparse[3] != dense[3]


def test_two_ranks_begin_as_one_does_and_resume_without_the_source(retrofit, on_one, source, tmp_path):
    two = tmp_path / "two"
    moved = tmp_path / "moved"
    shutil.copytree(source, moved)
    args = [arg if "init_from" not in arg else f"init_from={moved}" for arg in retrofit]
    run_app(*torchrun(2), "apps.train", *args, f"dump_dir={two}")
    one, found = metrics(on_one), metrics(two)
    assert found[1] == pytest.approx(one[1], abs=1e-5)
    assert found[2] == pytest.approx(one[2], abs=1e-4)
    shutil.rmtree(moved)
    run_app(*torchrun(2), "apps.train", *args, "steps=8", f"dump_dir={two}")
    assert list(metrics(two)) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_bf16_compute_keeps_the_sources_values_in_fp32(retrofit, source, tmp_path):
    """Under FSDP2 with mixed precision the master weights are fp32, and exactly what the file holds."""
    args = [*retrofit, "distributed.model_dtype=bf16", "steps=1", "optim.lr=1e-12", "optim.weight_decay=0.0"]
    run_app(*torchrun(2), "apps.train", *args, f"dump_dir={tmp_path / 'run'}")
    trained, _, _ = load_model(tmp_path / "run")
    given, _, _ = load_model(source)
    for (name, a), b in zip(trained.named_parameters(), given.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0, msg=name)


def test_wrong_settings_are_told_before_ranks_meet(retrofit, tmp_path):
    done = run_app("apps.train", *retrofit, "model.dim=32", "distributed.dp_shard=3", f"dump_dir={tmp_path}", check=2)
    assert "model.dim" in done.stderr
    assert "distributed.dp_shard" in done.stderr
