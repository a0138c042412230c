"""Which neurons are removed, beside which; what is wrong is told before a model is loaded; nothing is done twice."""

import json
import shutil

import numpy as np
import pytest

from tests.unit.interp.tiny import collected, write_checkpoint
from topklm.config import load_config
from topklm.errors import ConfigError
from topklm.interp.ablation import AblateConfig, make_plan, measure
from topklm.interp.ablation import effects as effects_module
from topklm.interp.interventions import bundle_means
from topklm.interp.neurons import Neuron


def problems(call, *args):
    with pytest.raises(ConfigError) as caught:
        call(*args)
    return {problem.key: problem.message for problem in caught.value.problems}


def test_everything_that_is_wrong_with_the_settings_is_told_at_once():
    found = problems(
        load_config, AblateConfig,
        ["neurons=[3:4,x]", "variants=[zero,zero]", "tokens=none", "controls=-1", "level=1", "alpha=2",
         "density_tolerance=0.5", "bootstrap=1", "batch_size=0", "n=0"],
    )  # fmt: skip
    assert set(found) == {"ckpt", "bundle", "neurons", "variants", "tokens", "controls", "level", "alpha",
                          "density_tolerance", "bootstrap", "batch_size", "n"}  # fmt: skip
    assert "neurons" in problems(load_config, AblateConfig, ["ckpt=a", "bundle=b"])
    config = load_config(AblateConfig, ["ckpt=a", "bundle=b", "neurons=[3:4, 0:1]"])
    assert config.named() == [Neuron(3, 4), Neuron(0, 1)]


def test_a_neuron_that_nothing_can_be_done_to_is_told(config):
    found = problems(make_plan, config(neurons="[0:3, 2:1]", variants=["refill"]))
    assert found == {"variants": "2:1: nothing is selected there, so nothing enters; add zero or mean"}
    assert make_plan(config(neurons="[0:3]", variants=["refill"])).targets


def test_neurons_of_a_list_a_file_a_result_and_of_layers(config, tmp_path):
    (tmp_path / "list.txt").write_text("# mine\n0:3\n\n2:1  # dense\n")
    plan = make_plan(config(file=str(tmp_path / "list.txt")))
    assert [str(target.neuron) for target in plan.targets] == ["0:3", "1:5", "2:1"]
    assert [target.kind for target in plan.targets] == ["topk", "topk", "dense"]
    assert plan.variants_of(Neuron(2, 1)) == ["zero", "mean"]
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "result.json").write_text(json.dumps({"data": {"neurons": ["1:2", "0:0", "0:1"]}}))
    plan = make_plan(config(neurons="", file=str(tmp_path / "result"), n=2))
    assert [str(target.neuron) for target in plan.targets] == ["1:2", "0:0"]
    plan = make_plan(config(neurons="", layers=[1, 0], n=3))
    assert [target.neuron.layer for target in plan.targets] == [1, 1, 1, 0, 0, 0]
    again = make_plan(config(neurons="", layers=[1, 0], n=3))
    assert [t.neuron for t in again.targets] == [t.neuron for t in plan.targets]


def test_controls_windows_and_top_contexts(config):
    plan = make_plan(config())
    for target in plan.targets:
        assert len(target.controls) == 2
        assert target.neuron not in target.controls
        assert {control.layer for control in target.controls} == {target.neuron.layer}
    assert len(plan.windows) == 60 // 8
    assert set(plan.windows) <= set(plan.bundle.windows)
    assert np.diff(plan.windows).min() > 8
    assert make_plan(config(tokens="1M")).windows.tolist() == plan.bundle.windows.tolist()
    for layer in range(3):
        for index in range(16):
            positions = plan.top_positions(Neuron(layer, index), 3)
            assert (positions - plan.window_of(positions) < 7).all()


def test_what_does_not_fit_is_told_before_a_model_is_loaded(config, place, tmp_path):
    data, checkpoint, bundle = place
    found = problems(make_plan, config(neurons="3:0, 0:16", file=str(tmp_path / "none"), layers=[7]))
    assert set(found) == {"neurons", "file", "layers"}
    assert "names no neurons" in found["file"]
    assert "bundle" in problems(make_plan, config(bundle=str(tmp_path)))
    assert "data" in problems(make_plan, config(data=str(tmp_path)))
    other = write_checkpoint(tmp_path / "other", data, seed=3)
    found = problems(make_plan, config(ckpt=str(other)))
    assert "force=true" in found["bundle"]
    assert make_plan(config(ckpt=str(other), force=True)).targets
    pre = collected(checkpoint, tmp_path / "pre", site="pre")
    assert "another reading" in problems(make_plan, config(bundle=str(pre.path)))["bundle"]
    random = collected(checkpoint, tmp_path / "random", init="random")
    assert "initial weights" in problems(make_plan, config(bundle=str(random.path)))["bundle"]
    assert bundle.layers == [0, 1, 2]


def test_means_are_the_bundles_and_of_its_site(place, tmp_path):
    _, checkpoint, bundle = place
    table = bundle.layer(1).table().dense(bundle.vocab_size)
    np.testing.assert_allclose(bundle_means(bundle, 1, [2, 5]).numpy(), table.sum(0)[[2, 5]] / bundle.n_tokens)
    from topklm.errors import DataError

    pre = collected(checkpoint, tmp_path / "pre", site="pre")
    assert bundle_means(pre, 1, [2], "pre").numpy() == pytest.approx(pre.layer(1).stats.sum[[2]] / pre.n_tokens)
    with pytest.raises(DataError, match="site pre"):
        bundle_means(bundle, 1, [2], "pre")
    assert bundle_means(pre, 2, [3]).numpy() == pytest.approx(bundle_means(bundle, 2, [3]).numpy())  # dense: the same


def test_an_interrupted_measurement_goes_on_and_other_settings_are_refused(config, loaded, tmp_path, monkeypatch):
    settings = config()
    whole = measure(settings, make_plan(settings), *loaded)
    file = tmp_path / "out" / "effects.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]) + lines[4][: len(lines[4]) // 2])
    made = []
    plainly = effects_module.Effects.measure
    monkeypatch.setattr(
        effects_module.Effects, "measure", lambda self, *args: made.append(args) or plainly(self, *args)
    )
    again = measure(settings, make_plan(settings), *loaded)
    assert len(made) == len(lines) - 1 - 3
    assert {key: effect.record() for key, effect in again.effects.items()} == {
        key: effect.record() for key, effect in whole.effects.items()
    }
    assert sorted(file.read_text().splitlines()) == sorted(line.strip() for line in lines)
    found = problems(measure, config(top_contexts=2), make_plan(config()), *loaded)
    assert "another top_contexts" in found["out"]
    assert len(measure(config(top_contexts=2, overwrite=True), make_plan(config()), *loaded).effects) == len(lines) - 1
    shutil.rmtree(tmp_path / "out")
    import dataclasses

    other = dataclasses.replace(loaded[1], alpha=0.5)
    assert "alpha 0.0" in problems(measure, settings, make_plan(settings), loaded[0], other)["bundle"]
