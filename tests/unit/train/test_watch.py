"""Steps that are skipped, spikes of the loss and sick checkpoints, in real runs of one process."""

import json

import pytest
import torch

from tests.poison import Poison
from tests.unit.train.test_diagnose import config
from topklm import load_model
from topklm.checkpoint import list_checkpoints
from topklm.errors import NonFiniteError
from topklm.train import train
from topklm.train.trainer import Trainer


def lines(path):
    """Without the time of writing."""
    return [{**json.loads(line), "created_at": None} for line in path.read_text().splitlines()]


def figures(dump_dir, key):
    return {line["global_step"]: line[key] for line in lines(dump_dir / "metrics.jsonl") if key in line}


def state_of(run):
    """Everything that an optimizer step may change."""
    moments = {
        f"{name}.{key}": value
        for name, p in run.model.named_parameters()
        for key, value in run.optimizer.state.get(p, {}).items()
    }
    everything = run.model.state_dict() | moments | run.activations.state_dict()
    return {name: tensor.detach().clone() for name, tensor in everything.items()}


@pytest.mark.parametrize("where", ["gradient", "loss"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "jumprelu", "normtopk"])
def test_a_skipped_step_leaves_every_bit_as_it_was(speeches, tmp_path, monkeypatch, where, activation):
    Poison(where, {3}).install(monkeypatch.setattr)
    step, changed = Trainer._train_step, []

    def compared(run, batches):
        before = state_of(run)
        result = step(run, batches)
        after = state_of(run)
        assert before.keys() <= after.keys()
        changed.append([name for name in before if not torch.equal(before[name], after[name])])
        return result

    monkeypatch.setattr(Trainer, "_train_step", compared)
    topk = {"k": 4, "n_dense_tail": 1, "activation": activation}
    run = config(speeches, tmp_path / "run", steps=5, on_nonfinite="skip", topk=topk, checkpoint={"dump": {"every": 0}})
    assert train(run) == 0
    # The first step has a learning rate of 0.
    assert [bool(names) for names in changed[1:]] == [True, True, False, True], changed[3]


def test_skipped_steps_are_counted_and_listed_through_an_interruption(speeches, tmp_path, monkeypatch):
    Poison("gradient", {2, 7, 8}).install(monkeypatch.setattr)

    def settings(name):
        return config(
            speeches, tmp_path / name, on_nonfinite="skip", max_nonfinite=2, checkpoint={"dump": {"every": 4}},
            logging={"freq": 1},
        )  # fmt: skip

    assert train(settings("whole")) == 0
    step = Trainer._train_step

    def interrupted(run, batches):
        if run.step == 6:
            raise KeyboardInterrupt
        return step(run, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(settings("parts"))
    assert train(settings("parts")) == 0
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert lines(whole / "skipped.jsonl") == lines(parts / "skipped.jsonl")
    assert [line["global_step"] for line in lines(whole / "skipped.jsonl")] == [3, 8, 9]
    for line in lines(whole / "skipped.jsonl"):
        assert line["ranks"] == []  # the loss was fine: the documents are those of the whole batch
        assert all(name.startswith("sotu/train/") for name in line["documents"])
    for key in ("optim/skipped_steps", "loss/out"):
        assert figures(whole, key) == figures(parts, key)
    assert figures(whole, "optim/skipped_steps")[12] == 3
    for a, b in zip(
        load_model(whole)[0].state_dict().values(), load_model(parts)[0].state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_a_spike_between_two_log_steps_is_reported(speeches, tmp_path, monkeypatch):
    Poison("spike", {9, 10}).install(monkeypatch.setattr)
    run = config(speeches, tmp_path, steps=16, spikes={"window": 8}, logging={"freq": 8})
    assert train(run) == 0
    begun, ended = lines(tmp_path / "spikes.jsonl")
    assert begun["global_step"] == 10
    assert begun["multiple"] == pytest.approx((begun["loss"] - begun["median"]) / begun["deviation"])
    assert begun["loss"] > begun["median"] + 4
    assert {"grad_norm", "lr"} <= begun.keys()
    assert all(name.startswith("sotu/train/") for name in begun["documents"])
    assert (ended["global_step"], ended["spike_at"], ended["recovered_after"]) == (12, 10, 2)
    assert figures(tmp_path, "loss/spikes") == {8: 0, 16: 1}
    sick = [
        json.loads((p / "train_state_00000.json").read_text())["sick"] for p in list_checkpoints(run.checkpoint_dir)
    ]
    assert [step for step, reason in enumerate(sick, 1) if reason] == [10, 11]
    assert sick[9] == "the loss is in a spike since step 10"


def test_a_run_that_diverges_keeps_its_healthy_checkpoints(speeches, tmp_path, monkeypatch, caplog):
    Poison("spike", set(range(8, 20))).install(monkeypatch.setattr)
    run = config(speeches, tmp_path, steps=16, spikes={"window": 8}, checkpoint={"dump": {"every": 1, "keep": 2}})
    assert train(run) == 0
    assert [int(path.name) for path in list_checkpoints(run.checkpoint_dir)] == [7, 8, 16]
    assert train(config(speeches, tmp_path, steps=16)) == 0
    assert "written by a sick run: the loss is in a spike since step 9" in caplog.text


def test_a_checkpoint_after_a_skipped_step_is_marked(speeches, tmp_path, monkeypatch):
    Poison("loss", {3}).install(monkeypatch.setattr)
    run = config(speeches, tmp_path, steps=6, on_nonfinite="skip", checkpoint={"dump": {"every": 2}})
    assert train(run) == 0
    sick = [
        json.loads((p / "train_state_00000.json").read_text())["sick"] for p in list_checkpoints(run.checkpoint_dir)
    ]
    assert sick == [None, "steps skipped since the checkpoint before: 1", None]


def test_no_spikes_are_looked_for_where_none_are_wanted(speeches, tmp_path, monkeypatch):
    Poison("spike", {9}).install(monkeypatch.setattr)
    assert train(config(speeches, tmp_path, spikes=None)) == 0
    assert not (tmp_path / "spikes.jsonl").exists()
    assert figures(tmp_path, "loss/spikes") == {}


def test_where_the_host_looks_late_what_was_skipped_before_the_end_is_listed(speeches, tmp_path, monkeypatch):
    Poison("loss", {1, 4, 5}).install(monkeypatch.setattr)
    monkeypatch.setattr("topklm.train.watch.Watch.verdict", lambda watch, *args: watch._guard.verdict(*args))
    run = config(speeches, tmp_path, on_nonfinite="skip", max_nonfinite=1, logging={"freq": 10},
                 checkpoint={"dump": {"every": 0}})  # fmt: skip
    with pytest.raises(NonFiniteError, match="step 5 and those after it, more than the max_nonfinite=1"):
        train(run)
    assert [line["global_step"] for line in lines(tmp_path / "skipped.jsonl")] == [2, 5]
    assert json.loads((tmp_path / "nonfinite.json").read_text())["found"] == "loss"
