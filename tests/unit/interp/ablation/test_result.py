"""From measurements to a result that the report can show."""

import dataclasses
import json

import numpy as np
import pytest

from topklm.interp.ablation import ablation_result, make_plan, measure
from topklm.interp.ablation.result import provenance
from topklm.report.result import read_results, write_result


def test_a_bundle_that_was_taken_by_force_is_told_in_the_provenance(config, loaded):
    settings = config(variants=["zero"])
    plan = make_plan(settings)
    measured = measure(settings, plan, *loaded)
    assert not any("ANOTHER" in line for line in provenance(settings, plan, measured, loaded[1]))
    other = dataclasses.replace(loaded[1], sha256="f" * 64, alpha=0.5)
    _, bundle, _ = provenance(settings, plan, measured, other)
    assert "OF ANOTHER CHECKPOINT" in bundle
    assert "AT ANOTHER ALPHA (0)" in bundle


def test_one_window_has_no_interval(config, loaded, tmp_path):
    settings = config(tokens=8, variants=["zero"])
    plan = make_plan(settings)
    assert len(plan.windows) == 1
    result = ablation_result(settings, plan, measure(settings, plan, *loaded), loaded[1])
    value, low, high = result.data["rows"][0]["effects"]["zero"]["overall"]
    assert np.isfinite(value)
    assert np.isnan([low, high]).all()
    assert "the interval excludes 0 for 0" in result.statements[0]
    write_result(result, tmp_path / "result")


def test_the_result_has_every_number_and_both_figures(config, loaded, tmp_path):
    settings = config(neurons="[0:3, 1:5, 2:4]")
    plan = make_plan(settings)
    measured = measure(settings, plan, *loaded)
    result = ablation_result(settings, plan, measured, loaded[1])
    write_result(result, tmp_path / "result")
    assert read_results([tmp_path / "result"])[0].kind == "ablation"
    data = json.loads((tmp_path / "result" / "result.json").read_text())["data"]
    assert data["neurons"] == ["0:3", "1:5", "2:4"]
    effect = measured.effects[plan.targets[0].neuron, "zero"]
    value, low, high = data["rows"][0]["effects"]["zero"]["overall"]
    assert value == pytest.approx(effect.overall.sum() / (7 * len(plan.windows)))
    assert low <= value <= high
    assert value == pytest.approx(float(effect.overall.sum()) / data["n_tokens"])
    assert "refill" not in data["rows"][2]["effects"]
    assert len(data["attribution"]) == 3
    to_zero = measured.attribution.to(0.0)
    np.testing.assert_allclose(data["attribution"]["1"], to_zero[1], rtol=1e-5)
    for name in ("effects.png", "attribution.svg", "effects_at.csv", "ablation.md"):
        assert (tmp_path / "result" / name).exists(), name
    assert any("rank correlation" in statement for statement in result.statements)
