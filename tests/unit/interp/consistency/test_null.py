"""Floors: the published one, and what a null keeps and what it does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.interp.consistency.compare import random_floor, rates
from topklm.interp.consistency.match import cosines, hungarian
from topklm.interp.consistency.null import frequency_bins, random_dictionary, random_partner, relabelled

seeds = st.integers(0, 2**32 - 1)


def test_random_dictionaries_of_the_published_size_have_the_published_floor():
    """arXiv 2505.20254 states 0.12 for 2,048 latents in 768 dimensions."""
    rng = np.random.default_rng(0)
    found = cosines(random_dictionary(2048, 768, rng), random_dictionary(2048, 768, rng))
    assert hungarian(found).cosine.mean() == pytest.approx(0.12, abs=0.002)


def test_one_direction_against_many_is_the_largest_of_normal_variables():
    """With one entry the matching is the largest of n cosines, about N(0, 1/d) each in many dimensions."""
    d, n = 2000, 200
    (floor,) = [np.mean([each.signed for each in random_floor(0.7, 100, 0, True)(1, n, d)])]
    simulated = np.random.default_rng(1).normal(size=(20_000, n)).max(1) / np.sqrt(d)
    assert floor == pytest.approx(simulated.mean(), abs=5 * simulated.std() / np.sqrt(100))


def test_the_floor_of_a_size_is_computed_once():
    floor = random_floor(0.7, 2, 0, True)
    assert floor(5, 4, 3) is floor(5, 4, 3)
    assert [each.signed for each in floor(5, 4, 3)] == [each.signed for each in random_floor(0.7, 2, 0, True)(5, 4, 3)]
    assert floor(5, 4, 3)[0] != floor(5, 4, 3)[1]


def test_directions_are_spread_evenly():
    rows = random_dictionary(20_000, 3, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(rows.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(3) / 3, atol=0.02)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=80), st.integers(1, 12))
def test_frequency_bins_are_octaves_with_enough_types(counts, least):
    counts = np.array(counts)
    bins = frequency_bins(counts, least)
    assert set(bins) == set(range(bins.max() + 1))
    assert min(len(counts), least) <= np.bincount(bins).min()
    octave = np.floor(np.log2(counts))
    for value in np.unique(octave):
        assert len(set(bins[octave == value])) == 1
    assert (np.diff(bins[np.argsort(-octave, kind="stable")]) >= 0).all()  # rarer types, later bins


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), seeds)
def test_relabelling_keeps_bins_and_all_angles(d, seed):
    rng = np.random.default_rng(seed)
    bins, rows = rng.integers(0, 4, d), rng.normal(size=(5, d))
    found = relabelled(rows, bins, rng)
    for value in np.unique(bins):
        np.testing.assert_array_equal(np.sort(found[:, bins == value]), np.sort(rows[:, bins == value]))
    np.testing.assert_allclose(found @ found.T, rows @ rows.T, atol=1e-12)


def test_a_permutation_across_bins_would_be_too_low():
    """Profiles that share what frequent types do look alike whatever they are; the null within bins says so."""
    rng = np.random.default_rng(0)
    counts = np.repeat([2, 3000], [450, 50])
    a, b = (np.where(counts > 100, 1.0, 0.2) * np.abs(rng.normal(size=(60, 500))) for _ in range(2))
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
    real = rates(a, b, 0.7, True)[0].signed
    within = rates(a, relabelled(b, frequency_bins(counts), rng), 0.7, True)[0].signed
    across = rates(a, relabelled(b, np.zeros(500, int), rng), 0.7, True)[0].signed
    assert within == pytest.approx(real, abs=0.02)  # there is nothing else that is alike
    assert across < real - 0.1


def test_random_partner_is_the_mean_over_all_of_its_stratum():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 4)), rng.normal(size=(7, 4))
    strata_a, strata_b = np.array([0, 0, 1, 1, 2, 5]), np.array([0, 1, 1, 1, 2, 2, 9])
    means = [np.mean([a[i] @ b[j] for j in range(7) if strata_b[j] == strata_a[i]]) for i in range(5)]
    assert random_partner(a, b, strata_a, strata_b) == pytest.approx(np.mean(means))
    assert np.isnan(random_partner(a, b, strata_a, strata_b + 100))
