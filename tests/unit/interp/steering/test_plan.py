"""What is wrong is told at once, before a model is loaded; what is right becomes doses, sets and controls."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.unit.interp.tiny import collected, write_checkpoint, write_data
from topklm.bundles import open_bundle
from topklm.config import load_config
from topklm.config.build import section_problems
from topklm.data.tokenizers import ByteTokenizer
from topklm.errors import CheckpointError, ConfigError
from topklm.interp.neurons import Neuron
from topklm.interp.steering.config import DoseConfig, SteerConfig
from topklm.interp.steering.plan import make_plan, with_scales
from topklm.interp.steering.result import provenance
from topklm.interp.steering.scale import Scale

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("plan")
    data = write_data(root / "data")
    checkpoint = write_checkpoint(root / "model", data)
    collected(checkpoint, root / "bundle")
    collected(checkpoint, root / "random", init="random")
    collected(checkpoint, root / "pre", site="pre")
    other = write_checkpoint(root / "other", data, name="other.pth", seed=9)
    collected(other, root / "foreign")
    ByteTokenizer().save(root / "model" / "tokenizer")  # the data is of none
    return root


def config_of(place, cls=DoseConfig, **changes):
    usual = {"ckpt": str(place / "model" / "model.pth"), "bundle": str(place / "bundle"), "neuron": "0:3"}
    if cls is DoseConfig:
        usual |= {"controls": 4, "density_tolerance": 3.0, "offsets": ["1x", "2x"]}
    config = cls(**usual | changes)
    assert list(section_problems(config)) == []
    return config


def refused(config):
    with pytest.raises(ConfigError) as caught:
        make_plan(config)
    return caught.value


def with_concept(**changes):
    return dataclasses.replace(DoseConfig().concept, min_count=1, **changes)


def test_doses_are_multiples_of_the_percentile_and_controls_match(place):
    config = config_of(place, neuron="0:3,1:5", offsets=["2x", 0.5, "0.5x"], concept=with_concept())
    plan = make_plan(config)
    assert [target.neuron for target in plan.targets] == [Neuron(0, 3), Neuron(1, 5)]
    for target in plan.targets:
        unit = target.scale.value
        assert target.offsets == sorted([0.5, 2 * unit, unit / 2])
        assert target.multiple(2 * unit) == 2.0
        density = plan.bundle.layer(target.neuron.layer).stats.fired / plan.bundle.n_tokens
        assert target.density == density[target.neuron.index]
        assert 1 <= len(target.controls) <= 4
        for control in target.controls:
            assert control.neuron.layer == target.neuron.layer
            assert control.neuron != target.neuron
            assert control.density == density[control.neuron.index]
            assert 1 / 3 <= control.density / target.density <= 3
            assert control.offsets == target.offsets


def test_controls_may_get_multiples_of_their_own(place):
    plan = make_plan(config_of(place, control_dose="own", concept=with_concept()))
    (target,) = plan.targets
    for control in target.controls:
        assert control.offsets[1] == pytest.approx(2 * control.offsets[0])
    assert {control.offsets[0] for control in target.controls} != {target.offsets[0]}


def test_neurons_that_do_not_exist_are_told_together(place):
    error = refused(config_of(place, neuron="3:0,0:16,2:4", bundle=str(place / "nothing")))
    told = str(error)
    assert "3:0: the model's layers are 0 ... 2 (the paper counts from 1: paper_layers=true)" in told
    assert "0:16: the model's neurons are 0 ... 15" in told
    assert "nothing is not a bundle" in told
    assert "2:4" not in told
    assert (
        make_plan(config_of(place, neuron="3:4", paper_layers=True, concept=with_concept())).targets[0].neuron.layer
        == 2
    )


def test_a_bundle_of_another_checkpoint_or_reading_is_refused(place, caplog):
    told = str(refused(config_of(place, bundle=str(place / "foreign"))))
    assert "not of" in told
    assert "force=true" in told
    plan = make_plan(config_of(place, bundle=str(place / "foreign"), force=True, concept=with_concept()))
    assert "taken all the same" in caplog.text
    assert plan.bundle is not None
    assert "initial weights" in str(refused(config_of(place, bundle=str(place / "random"))))
    assert "another reading" in str(refused(config_of(place, bundle=str(place / "pre"))))


def test_a_silent_neuron_is_refused(place, monkeypatch):
    bundle = open_bundle(place / "bundle")
    stats = bundle.layer(0).stats
    fired = np.array(stats.fired)
    fired[3] = 0
    silent = dataclasses.replace(stats, fired=fired)
    monkeypatch.setattr("topklm.bundles.bundle.LayerView.stats", silent)
    assert "0:3 is silent: it never fired" in str(refused(config_of(place)))


def test_what_has_no_unit_set_or_control_is_told(place):
    told = str(refused(config_of(place, percentile=1.0, density_tolerance=1.0)))
    assert "P1 of 0:3's activation is 0" in told
    assert "set a larger density_tolerance" in told
    concept = dataclasses.replace(DoseConfig().concept, min_count=10**6)
    assert "no token type of 1000000 occurrences with a positive" in str(refused(config_of(place, concept=concept)))


def test_without_a_bundle_multiples_wait_for_a_measurement(place):
    plan = make_plan(config_of(place, SteerConfig, bundle=None, offsets=["2x", 8]))
    assert plan.targets[0].offsets == []
    scale = Scale(value=3.0, low=3.0, high=3.0, percentile=99.9, n_tokens=9)
    assert with_scales(plan, {Neuron(0, 3): scale}).targets[0].offsets == [6.0, 8.0]
    with pytest.raises(ConfigError, match="no unit for multiples"):
        with_scales(plan, {Neuron(0, 3): dataclasses.replace(scale, value=0.0)})
    plain = make_plan(config_of(place, SteerConfig, bundle=None, offset=-2))
    assert plain.targets[0].offsets == [-2.0]


def test_a_checkpoint_without_a_tokenizer_is_told(place):
    with pytest.raises(CheckpointError, match="no tokenizer"):
        make_plan(config_of(place, ckpt=str(place / "other" / "other.pth")))


def test_a_configuration_tells_all_that_is_wrong():
    wrong = DoseConfig(neuron="1", offsets=["much"], controls=0, density_tolerance=0.5, n_samples=1, temperature=0)
    keys = {problem.key for problem in section_problems(wrong)}
    assert keys == {"ckpt", "bundle", "neuron", "offsets", "controls", "density_tolerance", "n_samples", "temperature"}
    assert {problem.key for problem in section_problems(SteerConfig())} == {"ckpt", "neuron", "offset"}
    assert "is missing" in str(next(p for p in section_problems(DoseConfig(offsets=[])) if p.key == "offset"))


def test_a_neuron_on_the_command_line_is_no_number_of_base_sixty():
    config = load_config(SteerConfig, ["ckpt=x", "neuron=3:44,1:02", "offset=2x", "prompt=a: b"])
    assert config.neurons() == [Neuron(3, 44), Neuron(1, 2)]
    assert str(config.doses()[0]) == "2x"
    assert config.prompt == "a: b"


def test_shipped_configurations_load():
    files = {path.stem: path for path in (ROOT / "configs" / "steer").glob("*.yaml")}
    paper = load_config(SteerConfig, [f"config={files.pop('paper')}", "ckpt=x", "neuron=22:894", "offset=8"])
    assert paper.neurons() == [Neuron(21, 894)]
    sampling = paper.sampling()
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.7, 0.9, 50, 128)
    assert paper.prompt == "Once upon a time,"
    assert set(files) == {"dose", "quickstart"}
    for path in files.values():
        dose = load_config(DoseConfig, [f"config={path}", "ckpt=x", "neuron=3:4", "bundle=y"])
        assert dose.n_samples >= 32
        assert dose.controls >= 19
        assert json.dumps(dataclasses.asdict(dose))


def test_a_bundle_that_was_taken_by_force_is_told_in_the_provenance(place):
    config = config_of(place, SteerConfig, offsets=[3])
    plan = make_plan(config)
    source = plan.bundle.meta.model
    own = SimpleNamespace(path=source.path, step=source.step, sha256=source.sha256, alpha=source.alpha)
    assert "ANOTHER" not in provenance(config, plan, own)[1]
    own.alpha, own.sha256 = 0.5, "f" * 64
    assert "OF ANOTHER CHECKPOINT" in provenance(config, plan, own)[1]
    assert "AT ANOTHER ALPHA (0" in provenance(config, plan, own)[1]


def test_texts_do_not_need_a_set(place):
    (target,) = make_plan(config_of(place, SteerConfig, offsets=["1x"])).targets  # no type occurs 20 times
    assert target.concept is None
    assert target.offsets == [target.scale.value]
    assert "no token type" in str(refused(config_of(place)))


def test_neurons_come_from_the_list_and_from_a_result_of_candidates(place, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"data": {"neurons": ["1:5", "0:3", "0:4"]}}))
    usual = {"candidates": str(tmp_path), "offsets": [3], "bundle": None}
    (best,) = make_plan(config_of(place, SteerConfig, neuron="", **usual)).targets
    assert best.neuron == Neuron(1, 5)
    paper = config_of(place, SteerConfig, neuron="1:3", paper_layers=True, n=2, **usual)  # a result counts from 0
    assert [target.neuron for target in make_plan(paper).targets] == [Neuron(0, 3), Neuron(1, 5)]
    doses = make_plan(config_of(place, neuron="", n=3, candidates=str(tmp_path), concept=with_concept()))
    assert [target.neuron for target in doses.targets] == [Neuron(1, 5), Neuron(0, 3), Neuron(0, 4)]
    assert "names no neurons" in str(refused(config_of(place, neuron="", candidates=str(place / "bundle"))))
    keys = {problem.key for problem in section_problems(SteerConfig(ckpt="a", offset=1))}
    assert keys == {"neuron"}
    assert {p.key for p in section_problems(SteerConfig(ckpt="a", offset=1, candidates="c", n=0))} == {"n"}
