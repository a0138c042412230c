"""Persistence and survival: against counting tokens one by one, and from planted bundles."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.interp.planted import plant
from topklm.errors import ConfigError
from topklm.interp.histories import PersistenceConfig, persistence_result
from topklm.interp.histories.survival import LayerFiring, persistence_point, ratio, survival_points

COUNTS = np.full(10, 40)
TOKENS = 400


def firing(masks):
    """{layer: LayerFiring} of bool masks [L, n, N], counted token by token."""
    layers, n, width = masks.shape
    found = {}
    for layer in range(layers):
        runs, following = np.zeros((layer + 1, width), int), np.zeros(width, int)
        for t in range(n):
            for i in range(width):
                if not masks[layer, t, i]:
                    continue
                length = 0
                while length < layer and masks[layer - length - 1, t, i]:
                    length += 1
                runs[length, i] += 1
                following[i] += layer + 1 < layers and masks[layer + 1, t, i]
        found[layer] = LayerFiring(
            fired=masks[layer].sum(0), fired_runs=runs, fired_next=following if layer + 1 < layers else None
        )
    return found


def sticky(seed, layers=4, n=60, width=5):
    """Masks whose neurons tend to stay; neuron 0 is silent in layer 0."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((layers, n, width), bool)
    masks[0] = rng.random((n, width)) < 0.4
    masks[0, :, 0] = False
    for layer in range(1, layers):
        masks[layer] = np.where(rng.random((n, width)) < 0.7, masks[layer - 1], rng.random((n, width)) < 0.4)
    return masks


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(0, 2))
def test_shares_are_those_of_counting_tokens(seed, start):
    masks = sticky(seed)
    layers, n = firing(masks), masks.shape[1]
    point = persistence_point("a", 1, start, layers[start], layers[start + 1], n)
    here, following = masks[start], masks[start + 1]
    active = here.any(0)
    assert (point.n, point.silent) == (active.sum(), (~active).sum())
    assert point.share == pytest.approx((here & following).sum() / here.sum())
    expected = sum(here[:, i].sum() * following[:, i].mean() for i in range(here.shape[1]))
    assert point.base == pytest.approx(expected / here.sum())
    assert point.lift == pytest.approx(point.share / point.base)
    above = (here & following).sum() - expected
    assert point.excess == pytest.approx(above / (here.sum() - expected))
    assert point.density == pytest.approx(here.mean())
    survival = list(survival_points("a", 1, layers, start, n))
    assert [p.depth for p in survival] == list(range(4 - start))
    assert (survival[0].share, survival[0].product, survival[0].independent) == (1, 1, 1)
    assert survival[1].share == pytest.approx(point.share)
    assert survival[1].product == pytest.approx(point.share)
    for p in survival:
        unbroken = masks[start : start + p.depth + 1].all(0)
        assert p.share == pytest.approx(unbroken.sum() / here.sum())
        independent = [
            here[:, i].sum() * math.prod(masks[start + d, :, i].mean() for d in range(1, p.depth + 1))
            for i in range(here.shape[1])
        ]
        assert p.independent == pytest.approx(sum(independent) / here.sum())
    assert [p.share for p in survival] == sorted((p.share for p in survival), reverse=True)


def test_the_product_of_steps_is_another_thing_than_survival():
    """A neuron that alternates in half of the tokens and stays in the other half."""
    masks = np.zeros((3, 8, 1), bool)
    masks[:, :4, 0] = True  # stays
    masks[0, 4:, 0] = masks[2, 4:, 0] = True  # leaves and comes back
    masks[1, 4:, 0] = False
    *_, last = survival_points("a", 1, firing(masks), 0, 8)
    assert last.share == 0.5
    assert last.product == 0.5  # all that are left stay
    masks[1, 4:6, 0] = True
    masks[2, 4:6, 0] = False  # two leave one layer later
    *_, last = survival_points("a", 1, firing(masks), 0, 8)
    assert (last.share, last.product) == (0.5, pytest.approx(6 / 8 * 4 / 6))


def test_history_that_matters_shows_between_survival_and_product():
    """Who has come from far stays, who has just come leaves: the product of steps is too low."""
    masks = np.zeros((3, 8, 1), bool)
    masks[0, :4] = masks[1, :8] = masks[2, :4] = True
    *_, last = survival_points("a", 1, firing(masks), 0, 8)
    assert (last.share, last.product) == (1.0, 0.5)


def test_without_counts_of_runs_survival_is_told_for_one_layer():
    layers = {i: dataclasses.replace(layer, fired_runs=None) for i, layer in firing(sticky(0)).items()}
    assert [p.depth for p in survival_points("a", 1, layers, 1, 60)] == [0, 1]
    silent = {i: dataclasses.replace(layer, fired=layer.fired * 0) for i, layer in layers.items()}
    assert math.isnan(next(survival_points("a", 1, silent, 0, 60)).share)


def test_the_interval_of_a_ratio_covers_it():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        x = rng.gamma(2, size=80)
        y = x * np.clip(0.6 + 0.2 * rng.normal(size=80), 0, 1)
        _, low, high = ratio(y, x)
        inside += low < 0.5987 < high  # mean of the clipped normal
    assert 0.9 < inside / 400 < 0.99
    assert all(math.isnan(v) for v in ratio(np.zeros(3), np.zeros(3)))


@pytest.fixture
def twins(tmp_path):
    """A TopK run whose neurons always stay, and a dense one whose layers are independent."""
    rng = np.random.default_rng(1)
    means = [rng.random((10, 4))] * 3
    stay = np.array([100, 200, 50, 0])
    runs = {layer: np.concatenate([np.zeros((layer, 4), int), stay[None]]) for layer in range(3)}
    always = dict.fromkeys(range(3), stay)
    half = {layer: np.full(4, 200) for layer in range(3)}
    plant(tmp_path / "topk", means, COUNTS, fired=always, fired_next=always, fired_runs=runs, alpha=0.0)
    chance = {layer: np.full(4, 100) for layer in range(2)}
    plant(tmp_path / "dense", means, COUNTS, fired=half, fired_next=chance, run="dense", alpha=None)
    return [str(tmp_path / "topk"), str(tmp_path / "dense")]


def test_bundles_of_single_layers_beside_others_are_left_out(twins, tmp_path):
    one = plant(tmp_path / "one", {1: np.ones((10, 4))}, COUNTS, n_layers=3, run="one").path
    alone = persistence_result(PersistenceConfig(bundles=twins)).statements
    beside = persistence_result(PersistenceConfig(bundles=[*twins, str(one)])).statements
    assert beside[1:] == alone[1:]  # the first counts bundles
    late = plant(tmp_path / "late", {1: np.ones((10, 4))}, COUNTS, n_layers=3, step=900).path
    with pytest.raises(ConfigError, match="newest"):
        persistence_result(PersistenceConfig(bundles=[twins[0], str(late)]))


def test_a_result_says_what_was_planted(twins):
    result = persistence_result(PersistenceConfig(bundles=twins))
    steps = {(p["series"], p["layer"]): p for p in result.data["persistence"]}
    assert steps["topk", 0]["share"] == steps["topk", 0]["excess"] == 1
    assert (steps["topk", 0]["n"], steps["topk", 0]["silent"]) == (3, 1)
    assert steps["dense", 1]["share"] == steps["dense", 1]["base"] == 0.5
    assert steps["dense", 1]["excess"] == 0
    survival = {(p["series"], p["start"], p["depth"]): p for p in result.data["survival"]}
    assert survival["topk", 0, 2]["share"] == 1
    assert ("dense", 0, 2) not in survival
    said = "\n".join(result.statements)
    assert "1 of 2 bundles were collected before" in said
    assert "topk at step 100 100.0% (base rate 37.5%" in said  # sum f^2 / (400 sum f)
    assert "2 of 16 neurons" in said
    assert list(result.drawings) == ["persistence"]
    with pytest.raises(ConfigError, match="no bundle has layer 7"):
        persistence_result(PersistenceConfig(bundles=twins, start=7))
    few = plant(Path(twins[0]).parent / "few", {1: np.ones((10, 4))}, COUNTS, n_layers=3).path
    with pytest.raises(ConfigError, match="none of them has two layers"):
        persistence_result(PersistenceConfig(bundles=[str(few)]))
    assert [p.key for p in PersistenceConfig(start=-1).problems()] == ["bundles", "start"]
