"""A run that meets a NaN or infinity ends before the step and before any save, and says where it came from."""

import functools
import json

import pytest
import torch

from tests.poison import Poison
from topklm.checkpoint import list_checkpoints
from topklm.config import build
from topklm.errors import NonFiniteError
from topklm.train import TrainConfig, train
from topklm.train.diagnose import first_bad_tensor
from topklm.train.trainer import Trainer

FOUND = {
    "loss": ("loss", "loss", None),
    "activation": ("output", "output of layers.2.attention.wo", 2),
    "gradient": ("gradient", "gradient of parameter layers.1.attention.wo.weight", 1),
    "weight": ("weight", "weight layers.0.attention.wo.weight", 0),
}


def config(speeches, dump_dir, **more):
    return build(
        TrainConfig,
        {
            "dump_dir": str(dump_dir),
            "steps": 12,
            "data": {"root_dir": str(speeches), "sources": {"sotu": 1.0}, "seq_len": 16, "batch_size": 2,
                     "global_batch_size": 4, "load_async": False},
            "model": {"dim": 16, "n_layers": 4, "n_heads": 2, "multiple_of": 8},
            "topk": {"k": 4, "n_dense_tail": 1},
            "optim": {"lr": 0.003, "warmup": 4},
            "distributed": {"model_dtype": "fp32"},
            "checkpoint": {"dump": {"every": 1}},
            "logging": {"freq": 4},
        } | more,
    )  # fmt: skip


def sick(run, poison, monkeypatch):
    poison.install(monkeypatch.setattr)
    with pytest.raises(NonFiniteError) as caught:
        train(run)
    return str(caught.value), json.loads((run_dir(run) / "nonfinite.json").read_text())


def run_dir(run):
    return run.checkpoint_dir.parent


@pytest.mark.parametrize(
    ("where", "saver"),
    [
        *((where, {}) for where in FOUND),
        ("activation", {"activation_checkpointing": "full"}),
        ("gradient", {"activation_checkpointing": "full"}),
        ("activation", {"compile": True}),
    ],
    ids=str,
)
def test_the_first_bad_number_is_named(speeches, tmp_path, monkeypatch, where, saver):
    if "compile" in saver:
        monkeypatch.setattr(torch.nn.Module, "compile", _traced)
    run = config(speeches, tmp_path / "run", distributed={"model_dtype": "fp32", **saver})
    message, report = sick(run, Poison(where, {2}), monkeypatch)
    found, what, layer = FOUND[where]
    assert (report["found"], report["what"], report["layer"], report["hit_ranks"]) == (found, what, layer, [0])
    assert report["global_step"] == 3
    (rank,) = report["ranks"]
    assert rank["numbers"][0] == 1
    assert rank["micro_batch"] == (None if where == "weight" else 1)
    assert all(name.startswith("sotu/train/") for name in rank["documents"])
    for part in ("step 3 is not finite", what, "rank 0", rank["documents"][0], "nonfinite.json"):
        assert part in message
    assert [int(path.name) for path in list_checkpoints(run.checkpoint_dir)] == [1, 2]


def _traced(module):
    """What a compiled block is, without generating code for it."""
    module._compiled_call_impl = torch.compile(module._call_impl, backend="eager")


def test_a_step_that_is_finite_when_computed_again_had_a_transient_error(speeches, tmp_path, monkeypatch):
    message, report = sick(config(speeches, tmp_path / "run"), Poison("activation", {2}, once=True), monkeypatch)
    assert (report["found"], report["hit_ranks"]) == (None, [])
    assert "transient error" in message


def test_a_step_that_cannot_be_computed_again_is_not_called_finite(speeches, tmp_path, monkeypatch):
    poison = Poison("loss", {2})
    gradients = Trainer._gradients

    def no_memory(run, batches):
        if poison.marked and (tmp_path / "run" / "seen").exists():
            raise torch.OutOfMemoryError("no room")
        if poison.marked:
            (tmp_path / "run" / "seen").touch()
        return gradients(run, batches)

    monkeypatch.setattr(Trainer, "_gradients", no_memory)
    message, report = sick(config(speeches, tmp_path / "run"), poison, monkeypatch)
    assert report["found"] == "out of memory"
    assert "step 3 is not finite" in message
    assert "not enough memory" in message
    assert "transient" not in message


def test_a_norm_that_overflows_is_told_from_gradients_that_do(speeches, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda *args: torch.tensor(torch.inf))
    message, report = sick(config(speeches, tmp_path / "run"), Poison("loss", set()), monkeypatch)
    assert report["found"] == "gradient norm"
    assert "norm of the gradients, each of which is finite" in message


def test_weights_that_a_step_made_infinite_are_not_saved(speeches, tmp_path, monkeypatch):
    run = config(speeches, tmp_path / "run")
    step = torch.optim.AdamW.step

    @functools.wraps(step)
    def bad_step(optimizer):
        step(optimizer)
        optimizer.param_groups[0]["params"][-1].detach().view(-1)[:2] = torch.inf

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", bad_step)
        message, report = sick(run, Poison("loss", set()), monkeypatch)
    assert (report["found"], report["what"], report["ranks"][0]["numbers"][0]) == ("weight", "weight output.weight", 2)
    assert "after step 1 are not finite; nothing was saved" in message
    assert list_checkpoints(run.checkpoint_dir) == []


def test_large_weights_are_finite_and_any_bad_number_is_not():
    model = torch.nn.Linear(4, 3, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model.weight.data.fill_(3e38)  # whose sum is infinite in fp32
    assert first_bad_tensor(model, optimizer) is None
    for bad in (torch.nan, torch.inf, -torch.inf):
        model.weight.data.fill_(1.0)[1, 2] = bad
        finding = first_bad_tensor(model, optimizer)
        assert (finding.what, finding.bad, finding.of, finding.layer) == ("weight weight", 1, 12, None)
    model.weight.data[0, 0] = torch.inf  # with -inf beside it
    assert first_bad_tensor(model, optimizer).bad == 2
    model.weight.data.fill_(1.0)
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    optimizer.state[model.weight]["exp_avg_sq"][2, 3] = torch.inf
    assert first_bad_tensor(model, optimizer).what == "exp_avg_sq of weight"


@pytest.mark.parametrize("device_looks_late", [False, True])
def test_where_the_host_looks_late_the_weights_are_still_those_of_the_bad_step(
    speeches, tmp_path, monkeypatch, device_looks_late
):
    """As on a GPU, where steps after the bad one are computed before the host knows: all of them are refused."""
    run = config(speeches, tmp_path / "run", checkpoint={"dump": {"every": 4}}, logging={"freq": 4})
    if device_looks_late:
        monkeypatch.setattr("topklm.train.watch.Watch.verdict", lambda watch, *args: watch._guard.verdict(*args))
    _, report = sick(run, Poison("gradient", {5}), monkeypatch)
    assert (report["global_step"], report["found"], report["layer"]) == (6, "gradient", 1)
    assert report["alpha"] == pytest.approx(1 - 5 / 6)
