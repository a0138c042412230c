"""All pairs and layers; interrupted and gone on with; the rows and strata that come out."""

import numpy as np
import pytest
from scipy import stats

from tests.unit.interp.consistency.runs import OWN, N, means_of, run
from topklm.interp.consistency import ConsistencyConfig, clouds_of, measure, open_inputs, rows_of, strata_of
from topklm.interp.consistency import pairs as module
from topklm.interp.consistency.summary import spread


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    fired = {seed: {layer: rng.integers(1, 1600, N) for layer in (0, 1)} for seed in (1, 2, 3)}
    trained = [run(root, seed, fired=fired[seed]) for seed in (1, 2, 3)]
    initial = [run(root, seed, init="random", step=0, means=_noise(seed)) for seed in (1, 2)]
    return [str(path) for path in (*trained, *initial)]


def _noise(seed):
    return list(np.random.default_rng(seed + 1000).exponential(size=(2, 60, N)))


def measured(paths, out, **settings):
    config = ConsistencyConfig(bundles=paths, null_draws=2, **settings)
    there = []
    return measure(open_inputs(config), out, there.append), there


def test_planted_neurons_are_found_in_every_pair_and_layer(paths, tmp_path):
    found, there = measured(paths, tmp_path)
    assert there == [False] * 8  # three pairs and one of initial weights, two layers
    for each in found[:6]:
        assert each.record.numbers["found"]["above"] == (N - OWN) / N
        a, b = (means_of(int(source.name[3]))[1] for source in each.pair)
        arrays = each.record.arrays
        partner = dict(zip(arrays["neuron_a"].tolist(), arrays["neuron_b"].tolist(), strict=True))
        assert [partner[a[i]] for i in range(N - OWN)] == b[: N - OWN].tolist()
    assert all(each.record.numbers["found"]["above"] == 0 for each in found[6:])


def test_what_is_done_is_not_done_again(paths, tmp_path, monkeypatch):
    before, _ = measured(paths, tmp_path)
    files = sorted((tmp_path / "pairs").iterdir())
    assert len(files) == 8
    files[2].unlink()
    files[5].write_bytes(b"broken")
    after, there = measured(paths, tmp_path)
    assert there.count(False) == 2
    for a, b in zip(before, after, strict=True):
        np.testing.assert_equal(b.record.numbers, a.record.numbers)
        for name, array in a.record.arrays.items():
            np.testing.assert_array_equal(b.record.arrays[name], array)
    monkeypatch.setattr(module, "compare", None)  # nothing is computed any more
    assert all(measured(paths, tmp_path)[1])


@pytest.mark.parametrize("change", [{"seed": 1}, {"threshold": 0.5}, {"hungarian": False}, {"min_count": 30}])
def test_other_settings_are_done_anew(paths, tmp_path, change):
    measured(paths, tmp_path)
    assert measured(paths, tmp_path, **change)[1] == [False] * 8


def test_memory_for_few_dictionaries_changes_nothing(paths, tmp_path, monkeypatch):
    before, _ = measured(paths, tmp_path / "a")
    monkeypatch.setattr(module, "CACHE_BYTES", 0)
    for a, b in zip(before, measured(paths, tmp_path / "b")[0], strict=True):
        np.testing.assert_equal(b.record.numbers, a.record.numbers)


def test_rows_are_means_over_pairs_with_their_floors(paths, tmp_path):
    found, _ = measured(paths, tmp_path)
    rows = rows_of(found)
    assert [(row["label"], row["layer"]) for row in rows] == [
        (label, layer) for label in ("TopK k=3", "TopK k=3, initial weights") for layer in (0, 1)
    ]
    first = rows[0]
    values = [each.record.numbers["found"]["signed"] for each in found if each.layer == 0][:3]
    assert first["signed"] == pytest.approx(np.mean(values))
    assert (first["signed_least"], first["signed_most"]) == (min(values), max(values))
    assert (first["runs"], first["pairs"], first["kind"], first["silent"]) == (3, 3, "topk", 0)
    assert first["signed_initial"] == rows[2]["signed"]
    assert np.isnan(rows[2]["signed_initial"])
    assert np.isnan(rows[2]["signed_low"])  # two runs: no interval
    nulls = [draw["signed"] for each in found if each.layer == 0 for draw in each.record.numbers["permuted"]][:6]
    assert first["signed_permuted"] == pytest.approx(np.mean(nulls))
    assert first["signed_permuted_most"] == max(nulls)
    assert first["family"] == rows[2]["family"] == 0
    assert first["identity_chance"] == pytest.approx(1 / N)
    assert rows[1]["kind"] == "dense"
    cosines, null = clouds_of(found)["TopK k=3", 0]
    assert len(cosines) == 3 * N
    assert len(null) == 2 * 3 * N


def test_strata_count_each_neuron_with_its_own_density(paths, tmp_path):
    found, _ = measured(paths, tmp_path)
    strata = [row for row in strata_of(found) if row["label"] == "TopK k=3" and row["kind"] == "topk"]
    assert sum(row["neurons"] for row in strata) == 2 * 3 * N
    pairs = [each.record.arrays for each in found if each.layer == 0][:3]
    for row in strata:
        chosen = [
            cosine
            for arrays in pairs
            for side in ("a", "b")
            for cosine, density in zip(arrays["cosine"], arrays[f"density_{side}"], strict=True)
            if row["density_low"] <= density < row["density_high"]
        ]
        assert row["neurons"] == len(chosen)
        assert row["cosine"] == pytest.approx(np.mean(chosen))
        assert row["above"] == pytest.approx(np.mean(np.array(chosen) > 0.7))


def test_intervals_leave_out_runs():
    """For three runs: t(2) times twice the standard error that three independent pairs would have."""
    values, pairs = [0.2, 0.5, 0.3], [(0, 1), (0, 2), (1, 2)]
    found = spread(values, pairs)
    assert found.mean == pytest.approx(1 / 3)
    assert found.high - found.mean == pytest.approx(
        stats.t.ppf(0.975, 2) * 2 * np.std(values, ddof=1) / np.sqrt(3), rel=2e-4
    )
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert np.isnan([spread([0.2], [(0, 1)]).low, spread([0.2, 0.3], [(0, 1), (2, 3)]).low]).tolist() == [True, False]
    assert np.isnan(spread([0.2, 0.3], [(0, 1), (0, 2)]).low)  # without run 0 there is no pair


def test_intervals_cover_the_mean_as_often_as_they_say():
    """Pairs h(x, y) = x + y + noise of normal runs: 95 % of the intervals hold the mean; those over pairs do not."""
    rng, n, hits, naive = np.random.default_rng(0), 6, 0, 0
    pairs = [(i, j) for i in range(n) for j in range(i)]
    for _ in range(600):
        x = rng.normal(size=n)
        values = np.array([x[i] + x[j] + 0.3 * rng.normal() for i, j in pairs])
        found = spread(values, pairs)
        hits += found.low <= 0 <= found.high
        half = stats.t.ppf(0.975, len(pairs) - 1) * values.std(ddof=1) / np.sqrt(len(pairs))
        naive += abs(values.mean()) <= half
    assert 0.92 < hits / 600 < 0.98
    assert naive / 600 < 0.8
