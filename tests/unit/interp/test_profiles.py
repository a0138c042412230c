"""Token profiles against their definition in float64, and what must not change them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.interp.planted import plant
from topklm.errors import DataError
from topklm.interp import profiles as module
from topklm.interp.entropy.layer_means import LayerMeans
from topklm.interp.profiles import _finish, shared_types, similarity, token_profiles

COUNTS = np.array([0, 40, 20, 4, 60, 28, 8])


def by_definition(means, types, centre):
    """Profiles of means [V, N] over `types`, neuron by neuron, in float64; NaN for silent ones."""
    kept = means[types]
    active = (kept != 0).any(0)
    if centre == "scaled":
        own = [[(m[i] - kept[:, i].mean()) for m in kept] for i in range(means.shape[1]) if active[i]]
        rows = [[x / np.sqrt(sum(y * y for y in row)) for x in row] for row in own]
        mean = [np.mean([row[v] for row in rows]) for v in range(len(types))]
        left = [np.array([x - m for x, m in zip(row, mean, strict=True)]) for row in rows]
        found = np.full((means.shape[1], len(types)), np.nan)
        found[active] = [row / np.sqrt(sum(x * x for x in row)) for row in left]
        return found
    rows = []
    for i in range(means.shape[1]):
        row = np.array([m[i] - (np.mean(m[active]) if centre != "none" else 0.0) for m in kept])
        if centre == "both":
            row = row - row.mean()
        rows.append(row / np.sqrt(sum(x * x for x in row)) if active[i] else np.full(len(types), np.nan))
    return np.array(rows)


@pytest.fixture
def means():
    table = np.random.default_rng(0).normal(size=(7, 5)) + 1
    table[:, 3] = 0  # silent
    table[[1, 2, 4, 5, 6], 4] = 0  # active on rare types only
    return table


@pytest.mark.parametrize("centre", ["token", "both", "scaled", "none"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [2, 4096])
def test_profiles_are_what_they_are_defined_to_be(means, tmp_path, centre, dtype, columns, monkeypatch):
    monkeypatch.setattr(module, "_COLUMNS", columns)
    bundle = plant(tmp_path / "a", [means], COUNTS, fired={0: [1, 2, 40, 0, 4]})
    types = shared_types([bundle], 8)
    assert types.tolist() == [1, 2, 4, 5, 6]
    found = token_profiles(bundle.layer(0), types, centre=centre, dtype=dtype)
    assert found.rows.dtype == dtype
    assert found.silent.tolist() == [False, False, False, True, True]
    np.testing.assert_allclose(found.density, np.array([1, 2, 40, 0, 4]) / 160)
    expected = by_definition(means, types, centre)
    np.testing.assert_allclose(
        found.rows[:3],
        expected[:3],
        rtol=1e-12 if dtype == np.float64 else 1e-5,
        atol=1e-12 if dtype == np.float64 else 1e-6,
    )
    assert (found.rows[3:] == 0).all()
    cosines = similarity(found, found)
    np.testing.assert_allclose(np.diag(cosines)[:3], 1, rtol=1e-6)
    assert (cosines[3:] == 0).all()


def test_types_are_those_that_all_bundles_have_often(means, tmp_path):
    a = plant(tmp_path / "a", [means], COUNTS)
    b = plant(tmp_path / "b", [means], COUNTS[::-1].copy())
    assert shared_types([a, b], 20).tolist() == [1, 2, 4, 5]
    assert shared_types([a, b], 0).tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(DataError, match=r"^0 token types .* lower min_count"):
        shared_types([a, b], 100)
    other = plant(tmp_path / "c", [means[:6]], COUNTS[:6])
    with pytest.raises(DataError, match="6, 7 types"):
        shared_types([a, other])
    with pytest.raises(DataError, match="1 of the 2 token types did not occur"):
        token_profiles(a.layer(0), np.array([0, 1]))
    with pytest.raises(DataError, match="different token types"):
        similarity(*(token_profiles(a.layer(0), types) for types in (np.array([1, 2]), np.array([1, 4]))))


def test_parts_have_the_profiles_of_the_whole(means, tmp_path):
    other = means * np.random.default_rng(1).normal(size=means.shape)
    parts = [plant(tmp_path / name, [table], COUNTS) for name, table in (("a", means), ("b", other))]
    whole = plant(tmp_path / "whole", [(means + other) / 2], 2 * COUNTS)
    types = shared_types([whole], 8)
    a = token_profiles(LayerMeans(parts, 0), types, dtype=np.float64)
    b = token_profiles(whole.layer(0), types, dtype=np.float64)
    np.testing.assert_allclose(a.rows, b.rows, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(a.density, b.density)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 9), st.integers(0, 3))
def test_dead_neurons_scale_and_order_change_nothing(seed, width, types, dead):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(width, types)) + 0.5

    def finished(rows):
        rows = rows.copy()
        silent = _finish(rows, rows.sum(0), "token")
        return rows, silent

    rows, silent = finished(table)
    assert silent.all() if width == 1 else not silent.any()  # one neuron alone is the mean of all
    with_dead, dead_silent = finished(np.vstack([table, np.zeros((dead, types))]))
    np.testing.assert_allclose(with_dead[:width], rows, atol=1e-12)
    assert dead_silent[width:].all()
    order = rng.permutation(width)
    np.testing.assert_allclose(finished(table[order])[0], rows[order], atol=1e-9)
    np.testing.assert_allclose(finished(table * 1024)[0], rows, atol=1e-12)


def test_equal_neurons_have_no_profile_left():
    rows = np.tile(np.float32([0.1, 0.7, 0.3]), (3, 1))
    assert _finish(rows, rows.astype(np.float64).sum(0), "token").all()
    assert (rows == 0).all()
