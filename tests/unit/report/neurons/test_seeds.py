"""Twins of several seeds: each against its own, and what the seeds' spread can tell."""

import math

import pytest

from topklm.report.neurons import over_seeds, read_measured, seed_statements, write_neurons

CUT = {"k": 3, "relu": True, "n_dense_tail": 0}
LEVELS = {1: (1.0, 1.5), 2: (1.1, 1.7), 3: (1.2, 1.6)}
"""Token entropy of a seed's TopK model and of its dense twin, read alike."""


def planted(plant, levels=LEVELS, controls=True):
    paths = []
    for seed, (topk, dense) in levels.items():
        paths.append(plant(f"t{seed}", run=f"topk{seed}", seed=seed, level=topk))
        paths.append(plant(f"r{seed}", run=f"dense{seed}", seed=seed, level=dense, cut=CUT))
        if controls:
            paths.append(plant(f"d{seed}", run=f"dense{seed}", seed=seed, level=3.0))
            paths.append(plant(f"i{seed}", run=f"topk{seed}", seed=seed, level=4.0, init="random", step=0))
    return paths


def test_each_seed_against_its_own_twin(plant):
    found = {each.gap: each for each in over_seeds(read_measured(planted(plant)))}
    assert found["corrected"].values == pytest.approx((-0.5, -0.6, -0.4))
    assert found["raw"].values == pytest.approx((-2.0, -1.9, -1.8))
    assert found["training"].values == pytest.approx((-3.0, -2.9, -2.8))
    assert found["limit"].values == pytest.approx((-0.5, -0.6, -0.4))
    corrected = found["corrected"]
    error = 0.1 / math.sqrt(3)
    assert corrected.mean == pytest.approx(-0.5)
    assert corrected.interval == pytest.approx((-0.5 - 4.30265 * error, -0.5 + 4.30265 * error), abs=1e-5)
    assert corrected.detectable == pytest.approx((4.30265 + 1.06066) * error, abs=1e-5)


def test_the_sentence_says_what_the_seeds_allow(plant):
    (text,) = seed_statements(over_seeds(read_measured(planted(plant))))
    assert "Over 3 seeds (topk1, topk2, topk3), read alike: more selective" in text
    assert "-0.50 nats" in text


@pytest.mark.parametrize(
    ("levels", "says"),
    [({1: (1.0, 1.5), 2: (1.8, 1.7)}, "inconclusive"), ({1: (1.6, 1.5), 2: (1.81, 1.7)}, "less selective")],
)
def test_other_verdicts(plant, levels, says):
    (text,) = seed_statements(over_seeds(read_measured(planted(plant, levels, controls=False))))
    assert f"read alike: {says}" in text


def test_one_seed_or_one_seed_twice_is_no_statement(plant):
    assert over_seeds(read_measured(planted(plant, {1: (1.0, 1.5)}))) == []
    same = [plant("a", run="topk_a", seed=1), plant("b", run="topk_b", seed=1)]
    read = [plant(f"same{i}", run=f"dense_{i}", seed=1, cut=CUT) for i in range(2)]
    assert over_seeds(read_measured([*same, *read])) == []


def test_the_page_has_the_seeds(plant, tmp_path):
    pytest.importorskip("matplotlib")
    write_neurons(read_measured(planted(plant, controls=False)), tmp_path)
    assert "Over 3 seeds" in (tmp_path / "index.html").read_text()
    assert "Over seeds" in (tmp_path / "neurons.md").read_text()
