"""Identity match: against loops in float64, on permuted and equal neurons, and over planted series of bundles."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.interp.planted import plant
from topklm.bundles.meta import _sha256
from topklm.errors import ConfigError
from topklm.interp.histories import MatchConfig, match_result
from topklm.interp.histories.identity import match_profiles, permuted_rate, rate_of, wilson
from topklm.interp.profiles import Profiles, _finish

COUNTS = np.full(40, 24)


def profiles(table, density=None):
    """Profiles of means [N, R]."""
    rows = np.array(table, np.float64)
    silent = _finish(rows, rows.sum(0), "token")
    return Profiles(
        types=np.arange(rows.shape[1]), rows=rows, silent=silent,
        density=np.zeros(len(rows)) if density is None else density,
    )  # fmt: skip


def nearest_by_definition(a, b):
    """For each row of means a [N, R] the most similar row of b, one after the other; -1: silent in either."""

    def centred(table, i, active):
        row = [table[i][v] - np.mean([table[j][v] for j in active]) for v in range(table.shape[1])]
        return np.array(row) / np.sqrt(np.sum(np.square(row)))

    alive = [[i for i in range(len(t)) if np.any(t[i] != 0)] for t in (a, b)]
    found = []
    for i in range(len(a)):
        if i not in alive[0] or i not in alive[1]:
            found.append(-1)
            continue
        mine = centred(a, i, alive[0])
        scores = {j: float(mine @ centred(b, j, alive[1])) for j in alive[1]}
        found.append(max(scores, key=scores.get))
    return found


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(4, 9), st.integers(4, 12), st.floats(0.0, 3.0))
def test_the_nearest_profile_is_that_of_a_loop(seed, width, types, noise):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(width, types)) + 1
    b = a + noise * rng.normal(size=a.shape)
    a[rng.integers(width)] = 0
    b[rng.integers(width)] = 0
    found = match_profiles(profiles(a), profiles(b))
    assert found.nearest.tolist() == nearest_by_definition(a, b)
    assert np.isnan(found.own).tolist() == (~found.compared).tolist()
    rate = rate_of([found])
    assert rate.n + rate.silent == width
    assert rate.n == found.compared.sum()
    if rate.n:
        own = [i for i, j in enumerate(found.nearest) if i == j]
        assert rate.rate == len(own) / rate.n
        assert 0 <= rate.low <= rate.rate <= rate.high <= 1
        # Who matches has no nearer rival.
        assert all(found.own[i] >= found.rival[i] for i in own)


def test_a_silent_neuron_is_nobody_s_nearest_even_if_all_others_are_opposite():
    def of(*rows):
        rows = np.array(rows, np.float64)
        silent = (rows == 0).all(1)
        return Profiles(types=np.arange(2), rows=rows, silent=silent, density=np.zeros(3))

    found = match_profiles(of([1, 0], [1, 0], [1, 0]), of([0, 0], [-1, 0], [-0.8, -0.6]))
    assert found.nearest.tolist() == [-1, 2, 2]
    np.testing.assert_allclose(found.own, [np.nan, -1, -0.8])
    np.testing.assert_allclose(found.rival, [np.nan, -0.8, -1])


def test_equal_neurons_match_and_permuted_ones_are_at_chance():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(300, 60))
    same = rate_of([match_profiles(profiles(table), profiles(table * 3))])
    assert (same.rate, same.high) == (1.0, 1.0)
    assert 0.98 < same.low < 1
    np.testing.assert_allclose((same.cosine, same.uniform, same.silent), (1, 1 / 300, 0))
    assert same.chance == pytest.approx(10 / 300)  # each finds itself, in its own bin of 30
    order = rng.permutation(300)
    permuted = rate_of([match_profiles(profiles(table), profiles(table[order]), bins=1)])
    assert permuted.rate == np.mean(order == np.arange(300))
    assert permuted.chance == pytest.approx(1 / 300)
    unrelated = rate_of([match_profiles(profiles(table), profiles(rng.normal(size=(300, 60))), bins=1)])
    assert unrelated.rate < 0.03
    assert unrelated.low < 1 / 300 < unrelated.high


@pytest.mark.parametrize("bins", [1, 3, 5])
def test_the_chance_level_is_the_mean_over_permutations(bins):
    rng = np.random.default_rng(1)
    n = 30
    density = rng.random(n)
    candidates = np.ones(n, bool)
    candidates[[3, 8]] = False
    nearest = rng.choice(np.flatnonzero(candidates), n)
    nearest[[3, 8, 11]] = -1
    order = np.flatnonzero(candidates)[np.argsort(density[candidates], kind="stable")]
    groups = [order[np.arange(28) * bins // 28 == g] for g in range(bins)]
    drawn = []
    for _ in range(4000):
        label = np.full(n, -5)
        for group in groups:
            label[group] = rng.permutation(group)
        compared = np.flatnonzero(nearest >= 0)
        drawn.append(np.mean(label[nearest[compared]] == compared))
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(permuted_rate(nearest, density, candidates, bins) - np.mean(drawn)) < 4 * error


def test_layers_of_one_index_are_one_observation():
    rng = np.random.default_rng(2)
    table = rng.normal(size=(50, 20))
    one = match_profiles(profiles(table), profiles(table + 1.5 * rng.normal(size=table.shape)))
    a, b = rate_of([one]), rate_of([one, one, one])
    assert (a.rate, a.low, a.high, a.cosine) == pytest.approx((b.rate, b.low, b.high, b.cosine))
    assert b.n == 3 * a.n
    nothing = match_profiles(profiles(np.zeros((50, 20))), profiles(table))
    assert (rate_of([nothing]).n, rate_of([nothing]).silent) == (0, 50)
    assert np.isnan(rate_of([nothing]).rate)
    both = rate_of([nothing, one])
    assert (both.rate, both.chance, both.uniform) == pytest.approx((a.rate, a.chance, a.uniform))


@pytest.mark.parametrize(("share", "n", "low", "high"), [(0.5, 10, 0.2366, 0.7634), (1.0, 20, 0.8389, 1.0)])
def test_wilson_interval_of_the_literature(share, n, low, high):
    assert wilson(share, n) == pytest.approx((low, high), abs=1e-4)


@pytest.fixture
def history(tmp_path):
    """A TopK run that is still at step 100 and permuted before, its dense twin that is random before step 300."""
    rng = np.random.default_rng(3)
    final, other = rng.random((3, 40, 8)), rng.normal(size=(3, 40, 8))
    order = np.roll(np.arange(8), 1)  # no neuron keeps its index
    stacked = np.stack([final[0]] * 3)
    for step, table in ((100, stacked[:, :, order]), (200, stacked), (300, stacked)):
        plant(tmp_path / "topk" / f"{step:03d}", list(table), COUNTS, step=step, alpha=0.0, n_layers=3)
    dead = other[2].copy()
    dead[:, 5] = 0
    for step, table in ((100, rng.normal(size=(3, 40, 8))), (200, other), (300, [other[0], other[1], dead])):
        plant(tmp_path / "dense" / f"{step:03d}", list(table), COUNTS, step=step, run="dense", alpha=None, n_layers=3)
    plant(tmp_path / "dense" / "init", list(stacked), COUNTS, step=0, run="dense", alpha=None, init="random")
    return tmp_path


def point(result, series, comparison, step, group="body", layer=None):
    (found,) = [
        p for p in result.data["points"]
        if (p["series"], p["comparison"], p["step"], p["group"], p["layer"]) == (series, comparison, step, group, layer)
    ]  # fmt: skip
    return found


def test_rates_over_checkpoints_and_layers_are_those_that_were_planted(history):
    config = MatchConfig(bundles=[str(history / "topk"), str(history / "dense")], min_count=5)
    assert list(config.problems()) == []
    result = match_result(config)
    assert point(result, "topk", "next checkpoint", 100)["rate"] == 0
    assert point(result, "topk", "next checkpoint", 200)["rate"] == 1
    assert point(result, "topk", "last checkpoint", 100)["rate"] == 0
    assert point(result, "topk", "last checkpoint", 200)["n"] == 16  # two TopK layers
    assert point(result, "topk", "next layer", 300)["rate"] == 1
    assert point(result, "topk", "next layer", 300)["n"] == 8  # from layer 0; from 1 to the tail belongs to neither
    assert point(result, "topk", "next layer", 300, "layer", 1)["n"] == 8
    assert point(result, "topk", "next checkpoint", 200, "tail")["rate"] == 1
    assert point(result, "dense", "next checkpoint", 200)["rate"] == 1
    assert point(result, "dense", "next checkpoint", 200, "tail")["n"] == 7
    assert point(result, "dense", "next checkpoint", 200, "layer", 2)["silent"] == 1
    assert point(result, "dense", "next layer", None)["rate"] == 1  # initial weights: the same in all layers
    assert point(result, "dense", "next layer", 300)["rate"] < 0.6
    assert not [p for p in result.data["points"] if p["comparison"] == "next checkpoint" and p["step"] is None]
    assert point(result, "topk", "dense twin", 300)["rate"] < 0.5
    assert len([p for p in result.data["points"] if p["comparison"] == "dense twin"]) == 5  # layers, body, tail
    said = "\n".join(result.statements)
    assert "Between topk and the dense model" in said
    assert "Between the last two checkpoints 100.0% of the neurons of topk" in said
    assert "At initial weights" in said
    assert set(result.drawings) == {"match_training", "match_depth"}
    assert len(result.tables["identity_match"].rows) == len(result.data["points"])


def test_checkpoints_that_are_further_apart_are_no_verdict(history):
    shutil.rmtree(history / "dense" / "200")
    result = match_result(MatchConfig(bundles=[str(history / "topk"), str(history / "dense")], min_count=5))
    said = "\n".join(result.statements)
    assert point(result, "dense", "next checkpoint", 100)["to_step"] == 300
    assert "Between the last two checkpoints" not in said
    assert "From one layer to the next 100.0% of the neurons of topk" in said


def test_a_layer_in_which_nothing_fires_is_silent(tmp_path):
    some = np.random.default_rng(0).random((40, 8))
    dead = plant(tmp_path / "b" / "1", [some, np.zeros((40, 8)), some], COUNTS, tail=0)
    result = match_result(MatchConfig(bundles=[str(dead.path)], min_count=5))
    assert [(p["n"], p["silent"]) for p in result.data["points"] if p["group"] == "layer"] == [(0, 8), (0, 8)]


def test_a_checkpoint_of_an_unknown_step_is_not_taken_for_initial_weights(history):
    path = history / "dense" / "300" / "meta.json"
    content = json.loads(path.read_text())
    content["model"]["step"] = None
    del content["sha256"]
    path.write_text(json.dumps(content | {"sha256": _sha256(content)}))
    with pytest.raises(ConfigError, match="300 does not say at which step"):
        match_result(MatchConfig(bundles=[str(history / "dense")], min_count=5))


def test_what_does_not_compare_is_refused(history, tmp_path):
    other = tmp_path / "other"
    plant(other, list(np.ones((3, 40, 8))), COUNTS, tokenizer="u" * 64)
    with pytest.raises(ConfigError, match=r"nowhere is not there; python -m apps\.collect"):
        match_result(MatchConfig(bundles=[str(history / "topk"), str(tmp_path / "nowhere")]))
    with pytest.raises(ConfigError, match="tokenizers"):
        match_result(MatchConfig(bundles=[str(history / "topk"), str(other)]))
    forced = match_result(MatchConfig(bundles=[str(history / "topk"), str(other)], force=True, min_count=5))
    assert forced.statements[0].startswith("Compared by force:")
    with pytest.raises(ConfigError, match="nothing to match"):
        match_result(MatchConfig(bundles=[str(plant(tmp_path / "one", [np.eye(40)[:, :8]], COUNTS).path)]))
    problems = list(MatchConfig(bins=0, min_count=0, out="").problems())
    assert [problem.key for problem in problems] == ["bundles", "out", "min_count", "bins"]
