"""Runs with thresholds or norms: resumed bit for bit, collected from; and a training loss that is not causal."""

import json
import shutil

import numpy as np
import pytest
import torch

from apps.report import ReportConfig
from apps.report import main as report
from tests.programs import metrics
from topklm import load_model
from topklm.bundles import open_bundle
from topklm.config import load_config
from topklm.interp import CollectConfig, collect
from topklm.sparsity import activation_tensors, activations_of
from topklm.train import TrainConfig, train

pytestmark = pytest.mark.e2e
STEPS = ["steps=12", "checkpoint.dump={every: 6, keep: 0}", "eval={every: 12, validation: {max_tokens: 2000}}"]
# normtopk measures at step 8 too, which is after the checkpoint that is resumed from.
SETTINGS = {
    "batchtopk": "{k: 8, n_dense_tail: 1, activation: batchtopk, anneal_ratio: 0.3}",
    "jumprelu": "{k: 8, n_dense_tail: 1, activation: jumprelu, anneal_ratio: 0.3, options: {bandwidth: 0.2, lr: 0.02}}",
    "normtopk": "{k: 8, n_dense_tail: 1, activation: normtopk, anneal_ratio: 0.3, options: {every: 4}}",
}


def stored(path):
    return {key: tensor.detach().clone() for key, tensor in activation_tensors(load_model(path)[0]).items()}


@pytest.mark.parametrize("name", SETTINGS)
def test_resumed_is_never_interrupted_and_statistics_are_of_the_same_model(tiny, tmp_path, name):
    args = [*tiny, *STEPS, f"topk={SETTINGS[name]}", f"dump_dir={tmp_path / 'run'}"]
    train(load_config(TrainConfig, args))  # in this process: a start of a program is most of its time
    losses, figures = metrics(tmp_path / "run"), metrics(tmp_path / "run", "val/loss@32")
    last = tmp_path / "run" / "checkpoints" / "0000000012"
    before, weights = stored(last), load_model(last)[0].state_dict()
    shutil.rmtree(last)
    train(load_config(TrainConfig, args))
    assert metrics(tmp_path / "run") == losses
    assert metrics(tmp_path / "run", "val/loss@32") == figures
    model, _, config = load_model(last)
    after = activation_tensors(model)
    assert before
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in weights.items())
    assert (config.alpha, config.topk.activation) == (0.0, name)
    if name == "batchtopk":
        assert after["layers.0.measured"] == 12
        assert after["layers.0.threshold"] != 0  # what it starts with
    if name == "jumprelu":
        assert after["layers.0.measured"] == 12
        assert after["layers.0.scale"] != 1
        assert metrics(tmp_path / "run", "loss/l0")[12] < metrics(tmp_path / "run", "loss/l0")[1]
    if name == "normtopk":
        return
    collect(CollectConfig(ckpt=str(last), out=str(tmp_path / "bundle"), tokens=600, batch_size=4))
    _counted(open_bundle(tmp_path / "bundle"), model)


def _counted(bundle, model):
    """Who fired how often, against the activations themselves on the bundle's own windows."""
    assert [bundle.meta.layers[str(i)] for i in range(4)] == ["topk", "topk", "topk", "dense"]
    stats = bundle.layer(0).whole()
    assert stats.l0_histogram.sum() == bundle.n_tokens
    assert stats.fired.sum() == (stats.l0_histogram * np.arange(len(stats.l0_histogram))).sum()
    assert len(activations_of(model)) == 3


def test_training_over_the_batch_is_not_called_a_loss_of_a_language_model(tiny, tmp_path):
    topk = "{k: 8, n_dense_tail: 1, activation: batchtopk, schedule: none, options: {selection: batch}}"
    run = tmp_path / "run"
    train(load_config(TrainConfig, [*tiny, *STEPS, "steps=6", f"topk={topk}", f"dump_dir={run}"]))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not any("loss/out" in line for line in lines)
    assert any("loss/out_noncausal" in line for line in lines)
    report(ReportConfig(runs=[str(run)], out=str(tmp_path / "report")))
    model, _, _ = load_model(run)
    tokens = torch.randint(5, 400, (2, 16))
    changed = tokens.clone()
    changed[:, 9:] += 3
    assert torch.equal(model(tokens)[:, :9], model(changed)[:, :9])
