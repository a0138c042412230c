"""`apps.train` and Meta Lingua: its checkpoints as a start; its blocks, where a checkout is on PYTHONPATH."""

import json
import os
import shutil

import pytest
import torch

from tests.genuine import checkout
from tests.programs import assert_same_run, metrics, run_app, torchrun, weights
from tests.unit.checkpoint.lingua_layout import consolidate, write_checkpoint
from topklm import load_model
from topklm.model import ModelConfig
from topklm.model.lingua import lingua_sha256

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
LINGUA = "model.backend=lingua"


def test_without_lingua_the_error_says_how_to_get_it(tiny, tmp_path):
    done = run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'run'}", LINGUA, "eval.validation.max_tokens=1", check=2,
                   env={"PYTHONPATH": ""})  # fmt: skip
    assert "git clone https://github.com/facebookresearch/lingua" in done.stderr
    assert "pip install 'topklm[lingua]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_package_called_apps_on_the_path_changes_nothing(tmp_path):
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "__init__.py").write_text("raise SystemExit('this is not ours')")
    assert "topk.anneal_form" in run_app("apps.train", "--help", env={"PYTHONPATH": str(tmp_path)}).stdout


def test_a_run_starts_from_linguas_checkpoints(tiny, tmp_path):
    """A dense run whose learning rate is 0 reports the loss of the weights it began with."""
    config = ModelConfig(dim=32, n_layers=4, n_heads=2, multiple_of=16, vocab_size=512, max_seqlen=32)
    saves = tmp_path / "theirs" / "checkpoints"
    model = write_checkpoint(saves / "0000000010", config)
    file = consolidate(saves / "0000000010") / "consolidated.pth"
    losses = []
    for i, start in enumerate((tmp_path / "theirs", file)):
        dump_dir = tmp_path / f"run{i}"
        run_app(
            "apps.train", *tiny, f"dump_dir={dump_dir}", "topk=null", "steps=1", f"checkpoint.init_ckpt_path={start}"
        )
        losses.append(metrics(dump_dir)[1])
        for name, weight in weights(dump_dir).items():
            assert torch.equal(weight, model.state_dict()[name]), name  # the first step has learning rate 0
    assert len(set(losses)) == 1
    done = run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'on'}", f"checkpoint.init_ckpt_path={saves.parent}",
                   "checkpoint.continue_training_from_init=true", check=2)  # fmt: skip
    assert "take its weights alone" in done.stderr


# --- genuine blocks --------------------------------------------------------------------------------------------------


@pytest.fixture
def lingua_env():
    """The environment with Lingua's checkout alone on the path: its `apps` comes before any other but ours."""
    return {"PYTHONPATH": os.pathsep.join([str(checkout()), *filter(None, [os.environ.get("PYTHONPATH")])])}


def assert_equal_curves(a, b, exact=24):
    """Losses equal to 1e-5 over the first `exact` steps; after them rounding may have flipped a selection."""
    one, other = metrics(a), metrics(b)
    assert one.keys() == other.keys()
    worst = {step: abs(other[step] - one[step]) for step in one}
    first, rest = (max([worst[s] for s in worst if (s <= exact) is early], default=0.0) for early in (True, False))
    print(f"\nlargest difference of the loss: {first:.1e} in the first {exact} steps, {rest:.1e} after them")
    assert first <= 1e-5
    assert rest <= 0.02


def test_lingua_blocks_train_the_same_topk_model(tiny, whole, tmp_path, lingua_env):
    """The native run's losses, exact resuming, and a native model comes back."""
    run = tmp_path / "lingua"
    run_app("apps.train", *tiny, f"dump_dir={run}", LINGUA, env=lingua_env)
    assert_equal_curves(whole, run, 10)
    assert metrics(run, "topk/l0_max")[24] <= 8
    assert metrics(run, "val/loss@32")[24] == pytest.approx(metrics(whole, "val/loss@32")[24], abs=0.01)
    model, _, config = load_model(run)
    assert (type(model).__name__, config.model.backend, config.run["model"]["backend"]) == (
        "Transformer",
        "native",
        "lingua",
    )
    versions = json.loads((run / "provenance.json").read_text())["versions"]
    assert versions["lingua/transformer.py"] == lingua_sha256()
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    for step in (15, 20, 24):
        shutil.rmtree(resumed / "checkpoints" / f"{step:010d}")
    run_app("apps.train", *tiny, f"dump_dir={resumed}", LINGUA, env=lingua_env)
    assert_same_run(run, resumed)
    done = run_app("apps.train", *tiny, f"dump_dir={whole}", LINGUA, env=lingua_env, check=2)
    assert "model.backend: 'lingua', but this run was started with 'native'" in done.stderr


def test_lingua_blocks_train_the_same_dense_model_with_packed_documents(tiny, tmp_path, lingua_env):
    arguments = [*tiny, "topk=null", "model.document_mask=true", "model.n_kv_heads=1", "model.weight_tying=true",
                 "model.ffn_dim=72"]  # fmt: skip
    for name in ("native", "lingua"):
        run_app("apps.train", *arguments, f"dump_dir={tmp_path / name}", f"model.backend={name}", env=lingua_env)
    assert_equal_curves(tmp_path / "native", tmp_path / "lingua")


@pytest.mark.dist
def test_sharded_compiled_and_recomputed(tiny, whole, tmp_path, lingua_env):
    run_app(*torchrun(2), "apps.train", *tiny, f"dump_dir={tmp_path / 'run'}", LINGUA, "distributed.compile=true",
            "distributed.activation_checkpointing=selective", env=lingua_env)  # fmt: skip
    assert_equal_curves(whole, tmp_path / "run", 10)
    run_app(*torchrun(2), "apps.train", *tiny, f"dump_dir={tmp_path / 'bf16'}", LINGUA, "distributed.model_dtype=bf16",
            "steps=12", env=lingua_env)  # fmt: skip
    assert metrics(tmp_path / "bf16")[1] == pytest.approx(metrics(whole)[1], abs=0.02)
