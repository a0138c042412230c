"""One pair of dictionaries: planted matches, own indices, shared neurons, density."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from topklm.interp.consistency.compare import (
    compare,
    identity,
    octave,
    random_floor,
    rank_correlation,
    rates,
    shared,
    shared_by_chance,
)
from topklm.interp.consistency.dictionary import row_dictionary

D = 60


def planted(rng, m, noise, density=None):
    """Two dictionaries of which entry order[i] of the second is entry i of the first, but for noise [m]."""
    a = row_dictionary(rng.normal(size=(m, D)), density)
    order = rng.permutation(m)
    rows = np.empty((m, D))
    rows[order] = a.rows + noise[:, None] * rng.normal(size=(m, D)) / np.sqrt(D)
    other = None
    if density is not None:
        other = np.empty(m)
        other[order] = density
    return a, row_dictionary(rows, other), order


def compared(a, b, **settings):
    usual = {"threshold": 0.7, "draws": 3, "seed": 0, "full": True}
    given = usual | settings
    floor = random_floor(given["threshold"], given["draws"], given["seed"], given["full"])
    return compare(a, b, np.zeros(D, int), floor=floor, **given)


def test_a_planted_dictionary_is_found_and_the_nulls_are_not():
    rng = np.random.default_rng(0)
    noise = np.where(np.arange(40) < 30, 0.1, 30.0)  # thirty are the same, ten have nothing in common
    a, b, order = planted(rng, 40, noise)
    found = compared(a, b)
    same = found.matching.b[:30] == order[:30]
    assert same.all()
    assert found.found.above == found.found.mutual_above == 30 / 40
    expected = np.mean([a.rows[i] @ b.rows[order[i]] for i in range(30)])
    assert found.matching.cosine[:30].mean() == pytest.approx(expected)
    assert 0.7 < found.found.signed <= found.found.upper
    for null in (*found.permuted, *found.random):
        assert null.above == 0
        assert null.signed < 0.4
    assert len(found.permuted) == len(found.random) == len(found.permuted_matchings) == 3


def test_signs_matter_in_the_signed_matching_alone():
    rng = np.random.default_rng(0)
    a, b, _ = planted(rng, 30, np.zeros(30))
    flipped = row_dictionary(b.rows * rng.choice([-1.0, 1.0], size=(30, 1)))
    found, _ = rates(a.rows, flipped.rows, 0.7, True)
    assert found.absolute == pytest.approx(1.0, abs=1e-14)
    assert found.above_absolute == 1.0
    assert found.signed < 0.9


def test_without_the_hungarian_method_there_are_nearest_neighbours():
    rng = np.random.default_rng(0)
    a, b, order = planted(rng, 30, np.full(30, 0.1))
    found = compared(a, b, full=False)
    assert np.isnan([found.found.signed, found.found.absolute, found.found.above]).all()
    assert found.found.mutual == found.found.mutual_above == 1.0
    np.testing.assert_array_equal(found.matching.b, order)
    full = compared(a, b)
    assert found.found.upper == full.found.upper
    assert found.found.mutual_cosine == full.found.mutual_cosine


def test_the_same_seed_gives_the_same_nulls():
    a, b, _ = planted(np.random.default_rng(0), 20, np.full(20, 0.1))
    assert compared(a, b).permuted == compared(a, b).permuted
    assert compared(a, b).permuted != compared(a, b, seed=1).permuted


def test_unequal_widths_are_matched_over_the_smaller():
    rng = np.random.default_rng(0)
    a, b, _ = planted(rng, 30, np.zeros(30))
    found = compared(a.only(np.arange(10)), b)
    assert found.found.signed == pytest.approx(1.0, abs=1e-14)
    assert found.found.above == found.found.mutual == 1.0
    assert len(found.matching.a) == 10


def test_dictionaries_without_entries_compare_to_nothing():
    a, b, _ = planted(np.random.default_rng(0), 5, np.zeros(5))
    for full in (True, False):
        found = compared(a.only(np.zeros(0, int)), b, full=full)
        assert np.isnan([found.found.signed, found.found.mutual, found.identity.share, found.rank_correlation]).all()
        assert len(found.matching.a) == 0


def test_own_index_and_its_chance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, D))
    order = np.arange(50)
    order[:10] = np.roll(order[:10], 1)
    a, b = row_dictionary(rows), row_dictionary(rows[order])
    found = identity(a, b, rates(a.rows, b.rows, 0.7, True)[1])
    assert found.share == 40 / 50
    assert found.chance == 1 / 50
    assert found.cosine == pytest.approx(np.mean([a.rows[i] @ b.rows[i] for i in range(50)]))
    # Neuron 3 is silent in the first run, neurons 20 to 29 in the second: of the others 38 - 10 are themselves.
    a, b = a.only(np.delete(np.arange(50), 3)), b.only(np.delete(np.arange(50), np.arange(20, 30)))
    found = identity(a, b, rates(a.rows, b.rows, 0.7, True)[1])
    assert found.share == 30 / 39
    assert found.chance == 1 / 49


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_chance_of_the_own_index_is_that_of_random_matchings(seed):
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(100):
        a, b = (row_dictionary(rng.normal(size=(6, 4))) for _ in range(2))
        hits += identity(a, b, rates(a.rows, b.rows, 0.7, True)[1]).share * 6
    assert abs(hits - 100) < 6 * np.sqrt(100)  # one of six each time, with a variance of one


def test_shared_are_those_that_both_dictionaries_match_well_to_the_same_partner():
    rng = np.random.default_rng(0)
    first = planted(rng, 40, np.where(np.arange(40) < 30, 0.1, 30.0))
    order = first[2]
    second_rows = rng.normal(size=(40, D))
    partner = np.empty((40, D))
    partner[order] = second_rows
    swapped = order[:5]
    partner[swapped] = partner[np.roll(swapped, 1)]  # five have another partner there
    second = row_dictionary(second_rows), row_dictionary(partner)
    assert shared(first[:2], second, 0.7, True) == (25 / 40, pytest.approx(25 / 40, abs=5 / 40))
    assert shared(first[:2], second, 0.7, False)[0] == 25 / 40
    # Neurons that the second kind does not have are left out.
    kept = np.setdiff1d(np.arange(40), [39])
    some = second[0].only(kept), second[1].only(np.setdiff1d(np.arange(40), [order[39]]))
    assert shared(first[:2], some, 0.7, True)[0] == 25 / 39
    none = second[0].only(np.zeros(0, int)), second[1]
    assert np.isnan(shared(first[:2], none, 0.7, True)).all()


def test_partners_agree_by_chance_where_two_dictionaries_are_alike_within_each_run():
    """Encoders that are the decoders all but for noise have the same partners, whatever the two runs have in common."""
    rng = np.random.default_rng(0)
    a, b = (row_dictionary(rng.normal(size=(40, D))) for _ in range(2))
    twice = [row_dictionary(each.rows + 0.01 * rng.normal(size=each.rows.shape)) for each in (a, b)]
    settings = {"threshold": 0.2, "draws": 3, "seed": 0, "full": True}
    found = shared((a, b), tuple(twice), 0.2, True)
    by_chance = shared_by_chance((a, b), tuple(twice), np.zeros(D, int), **settings)
    assert found[1] > 0.7
    assert by_chance == pytest.approx(found, abs=0.2)
    same = shared((a, a), (twice[0], twice[0]), 0.7, True)
    other = row_dictionary(rng.normal(size=(40, D)))
    assert same == (1.0, 1.0)
    apart = shared_by_chance((a, a), (other, other), np.zeros(D, int), **settings | {"threshold": 0.7})
    assert apart[0] == 0.0
    assert apart[1] < 0.15


def test_density_strata_are_powers_of_two():
    assert octave(np.array([1.0, 0.5, 0.49, 0.25, 0.1])).tolist() == [0, -1, -2, -2, -4]
    assert octave(np.array([np.nan, 0.0])).tolist() == [1, 1]  # unknown: none that a density has


def test_consistency_that_rises_with_density_is_seen():
    rng = np.random.default_rng(0)
    density = np.geomspace(1e-3, 0.9, 80)
    a, b, _ = planted(rng, 80, 0.3 / np.sqrt(density), density)
    found = compared(a, b)
    assert found.rank_correlation > 0.8
    assert np.isnan(compared(*planted(rng, 20, np.zeros(20))[:2]).rank_correlation)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_rank_correlation_is_spearmans(pairs):
    x, y = np.array(pairs, float).T
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert np.isnan(rank_correlation(x, y))
    else:
        assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_a_dictionary_keeps_track_of_its_neurons():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    found = row_dictionary(rows, np.array([0.1, 0.2, 0.3, 0.4]))
    assert found.index.tolist() == [0, 2, 3]
    assert found.width == 4
    np.testing.assert_allclose(found.rows, [[0.6, 0.8], [0, 1], [1, 0]])
    picked = found.only(np.array([2, 3]))
    assert (picked.index.tolist(), picked.width) == ([2, 3], 4)
    assert picked.density.tolist() == [0.3, 0.4]
    np.testing.assert_allclose(picked.rows, [[0, 1], [1, 0]])
