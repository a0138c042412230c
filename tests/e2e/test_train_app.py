"""`python -m apps.train` as a user runs it: one process on a CPU."""

import json
import signal

import pytest
import torch

from tests.programs import assert_same_run, kill, metrics, run_app, start_app, wait_for_step
from topklm import load_model
from topklm.checkpoint import list_checkpoints
from topklm.errors import EXIT_PREEMPTED
from topklm.export.consolidated import export_consolidated
from topklm.export.source import open_source
from topklm.sparsity import get_alpha

pytestmark = pytest.mark.e2e


def test_trains_validates_and_leaves_what_lingua_leaves(whole):
    losses = metrics(whole)
    assert list(losses) == list(range(1, 25))
    assert min(list(losses.values())[-3:]) < losses[1] - 0.3
    assert [p.name for p in list_checkpoints(whole / "checkpoints")] == [f"{step:010d}" for step in (5, 10, 15, 20, 24)]
    entry = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert {"global_step", "acc_step", "speed/wps", "speed/FLOPS", "optim/lr", "optim/grad_norm",
            "optim/total_tokens", "loss/out", "created_at", "topk/alpha"} <= set(entry)  # fmt: skip
    assert metrics(whole, "topk/alpha")[1] == 1.0
    assert metrics(whole, "topk/alpha")[7] == 0.5
    assert metrics(whole, "topk/alpha")[13] == 0.0
    assert list(metrics(whole, "val/ppl@32")) == [8, 16, 24]
    assert metrics(whole, "topk/l0_max")[24] <= 8
    assert (whole / "config.yaml").exists()
    assert "step 24/24" in (whole / "train.log").read_text()


def test_a_loaded_checkpoint_computes_what_training_computed(whole):
    for step, alpha in ((5, 1 - 5 / 12), (10, 1 - 10 / 12), (24, 0.0)):
        model, tokenizer, config = load_model(whole / "checkpoints" / f"{step:010d}")
        assert get_alpha(model) == pytest.approx(alpha)
        assert (config.step, config.alpha) == (step, get_alpha(model))
        assert tokenizer.decode(tokenizer.encode("the state of the union")) == "the state of the union"
    by_run, _, config = load_model(whole)
    assert config.step == 24
    by_file, _, from_file = load_model(export_consolidated(open_source(config.path)))
    tokens = torch.arange(20)[None]
    assert torch.equal(by_run(tokens), by_file(tokens))
    assert (from_file.step, from_file.alpha) == (24, 0.0)
    bare = whole / "bare.pth"
    torch.save(by_run.state_dict(), bare)
    (whole / "params.json").write_text(json.dumps(config.run))
    assert torch.equal(load_model(bare)[0](tokens), by_run(tokens))
    dense_view = load_model(whole, alpha=1.0)[0]
    assert not torch.equal(dense_view(tokens), by_run(tokens))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_saves_and_the_same_command_goes_on(tiny, whole, tmp_path, signum):
    stopped = tmp_path / "stopped"
    process = start_app("apps.train", *tiny, "checkpoint.async_save=true", f"dump_dir={stopped}")
    wait_for_step(stopped, 7, process)
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == EXIT_PREEMPTED, stderr
    last = max(metrics(stopped))
    assert list_checkpoints(stopped / "checkpoints")[-1].name == f"{last:010d}"
    run_app("apps.train", *tiny, f"dump_dir={stopped}", "data.load_async=true")
    assert_same_run(whole, stopped)


def test_a_finished_run_is_left_alone_and_a_longer_one_does_not_anneal_again(tiny, whole):
    before = (whole / "metrics.jsonl").read_text()
    run_app("apps.train", *tiny, f"dump_dir={whole}")
    assert (whole / "metrics.jsonl").read_text() == before
    run_app("apps.train", *tiny, f"dump_dir={whole}", "steps=27")
    assert list(metrics(whole)) == list(range(1, 28))
    assert [metrics(whole, "topk/alpha")[s] for s in (25, 26, 27)] == [0, 0, 0]


def test_accumulation_and_micro_batches_do_not_change_the_run(tiny, whole, tmp_path):
    run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'other'}", "data.batch_size=3", "steps=10",
            "topk.anneal_steps=12")  # fmt: skip
    one, other = metrics(whole), metrics(tmp_path / "other")
    # The learning rate follows `steps`: compare while it warms up.
    for step in range(1, 6):
        assert one[step] == pytest.approx(other[step], abs=1e-5)


def test_a_dense_tail_as_long_as_the_model_is_the_dense_model(tiny, tmp_path):
    for name, topk in (("tail", "topk={k: 8, n_dense_tail: 4}"), ("none", "topk=null")):
        run_app("apps.train", *tiny, f"dump_dir={tmp_path / name}", topk, "steps=6")
    assert_same_run(tmp_path / "tail", tmp_path / "none")


def test_a_non_finite_loss_stops_before_the_step_and_is_never_saved(tiny, tmp_path):
    done = run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'nan'}", "optim.lr=1e30", "optim.clip=1e30", check=4)
    assert "is not finite" in done.stderr
    assert "sotu" in done.stderr  # the batch's documents
    for path in list_checkpoints(tmp_path / "nan" / "checkpoints"):
        assert all(w.isfinite().all() for w in load_model(path)[0].state_dict().values())


def test_wrong_input_is_told_all_at_once(tiny, tmp_path):
    done = run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'x'}", "optim.lrr=1", "model.n_heads=5", "steps=many",
                   "topk.k=800", check=2)  # fmt: skip
    for text in ("did you mean optim.lr?", "model.n_heads", "steps: 'many' is not a whole number", "topk.k"):
        assert text in done.stderr
    assert not (tmp_path / "x").exists()
    assert "Traceback" not in done.stderr


def test_a_run_keeps_its_model_and_its_data(tiny, whole):
    done = run_app("apps.train", *tiny, f"dump_dir={whole}", "model.dim=64", "data.seed=7", "topk.k=9", check=2)
    for key in ("model.dim", "data.seed", "topk.k"):
        assert f"{key}: " in done.stderr
    assert "was started with" in done.stderr


def test_new_runs_start_from_given_weights(tiny, whole, tmp_path):
    run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'tuned'}", f"checkpoint.init_ckpt_path={whole}",
            "topk={k: 8, n_dense_tail: 1, anneal_ratio: 0}", "steps=2")  # fmt: skip
    assert metrics(tmp_path / "tuned")[1] < metrics(whole)[3]
    run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'on'}", f"checkpoint.init_ckpt_path={whole}",
            "checkpoint.continue_training_from_init=true", "steps=60")  # fmt: skip
    assert list(metrics(tmp_path / "on")) == list(range(25, 61))
    assert set(metrics(tmp_path / "on", "topk/alpha").values()) == {0}  # a longer run does not anneal again
    assert metrics(tmp_path / "on", "optim/total_tokens")[25] == 25 * 8 * 32
    done = run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'less'}", f"checkpoint.init_ckpt_path={whole}",
                   "model.n_layers=3", check=5)  # fmt: skip
    assert "parameters differ: layers.3.attention" in done.stderr


def test_help_names_every_key():
    text = run_app("apps.train", "--help").stdout
    for key in ("topk.anneal_form", "data.global_batch_size", "distributed.dp_shard", "optim.lr_min_ratio"):
        assert key in text


def test_two_processes_do_not_write_one_run(tiny, tmp_path):
    process = start_app("apps.train", *tiny, f"dump_dir={tmp_path / 'one'}", "steps=2000", "checkpoint.dump.every=0")
    wait_for_step(tmp_path / "one", 3, process)
    done = run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'one'}", check=2)
    assert "in use by another process" in done.stderr
    kill(process)


def test_places_that_cannot_be_written_and_missing_packages_are_told_before_training(tiny, tmp_path):
    (tmp_path / "file").touch()
    done = run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'file' / 'run'}", "logging.wandb={project: p}",
                   env={"PYTHONPATH": str(_without_wandb(tmp_path))}, check=2)  # fmt: skip
    assert "cannot be written" in done.stderr
    assert "topklm[wandb]" in done.stderr
    assert "Traceback" not in done.stderr


def _without_wandb(tmp_path):
    """A directory on the path in which wandb cannot be imported, whether it is installed or not."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "wandb.py").write_text("raise ImportError('not here')")
    return tmp_path / "hidden"
