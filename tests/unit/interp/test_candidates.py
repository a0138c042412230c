"""Candidates for steering: each criterion against its definition, and the order."""

import dataclasses

import numpy as np
import pytest

from tests.unit.interp.tiny import collected, write_checkpoint, write_data
from topklm.bundles.labels import append_labels
from topklm.errors import ConfigError
from topklm.interp import EntropyConfig
from topklm.interp.candidates import find_candidates, lifts
from topklm.interp.entropy.files import measure_and_write
from topklm.interp.labels import CandidatesConfig
from topklm.interp.labels.word_labels import make_label
from topklm.report.neurons import read_measured


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("topk")
    bundle = collected(write_checkpoint(root, write_data(root / "data")), root / "b", snapshots=[], halves=False)
    config = EntropyConfig(bundle=[str(bundle.path)], min_count=3, draws=50, null_sets=0)
    measure_and_write(config, bundle, bundle.embedding)
    (found,) = read_measured([bundle.path])
    return found


def config(**more):
    usual = {"bundle": "b", "fdr": 0.9, "min_density": 0.0, "max_density": 1.0, "min_fired": 1,
             "min_types": 2, "min_lift": 0.0}  # fmt: skip
    return CandidatesConfig(**(usual | more))


def test_the_lift_is_over_the_next_layers_base_rate(measured):
    bundle = measured.bundle
    lift = lifts(bundle).reshape(3, -1)
    n = bundle.n_tokens
    for layer in (0, 1):
        here, after = (bundle.layer(i).stats for i in (layer, layer + 1))
        for neuron in range(16):
            if here.fired[neuron] and after.fired[neuron]:
                together = here.fired_next[neuron] / n  # P(both) / (P(here) P(there))
                expected = together / (here.fired[neuron] / n * after.fired[neuron] / n)
                assert lift[layer, neuron] == pytest.approx(expected)
            else:
                assert np.isnan(lift[layer, neuron])
    assert np.isnan(lift[2]).all()


def test_every_criterion_holds_and_none_that_holds_all_is_left_out(measured):
    columns = measured.columns
    asked = config(min_fired=5, min_density=0.1, max_density=0.5, min_types=3, min_lift=1.05, fdr=0.95)
    found = find_candidates(asked, measured)
    lift = lifts(measured.bundle)
    density = columns["density"]
    holds = (
        (density * measured.bundle.n_tokens >= 4.5) & (density >= 0.1) & (density <= 0.5)
        & (columns["response_tokens"] >= 3) & (columns["coherence_q"] <= 0.95) & (lift >= 1.05)
    )  # fmt: skip
    expected = {f"{columns['layer'][i]}:{columns['neuron'][i]}" for i in np.flatnonzero(holds)}
    assert set(found.names) == expected
    assert len(expected) == found.found >= 2
    assert found.found < find_candidates(dataclasses.replace(asked, min_types=2), measured).found
    coherence = [row["coherence"] for row in found.table.rows]
    assert coherence == sorted(coherence, reverse=True)
    assert [row["rank"] for row in found.table.rows] == list(range(1, found.found + 1))
    assert found.funnel.rows[0]["together"] == 48
    assert found.funnel.rows[-1]["together"] == found.found
    together = [row["together"] for row in found.funnel.rows]
    assert together == sorted(together, reverse=True)
    few = find_candidates(dataclasses.replace(asked, n=2), measured)
    assert few.names == found.names[:2]
    assert few.found == found.found


def test_the_last_layer_has_no_next_one(measured):
    all_layers = find_candidates(config(), measured).names
    assert any(name.startswith("2:") for name in all_layers)
    assert not any(name.startswith("2:") for name in find_candidates(config(min_lift=1e-9), measured).names)
    only = find_candidates(config(layers=[1]), measured).names
    assert only
    assert all(name.startswith("1:") for name in only)
    with pytest.raises(ConfigError, match=r"layers: \[7\]: the bundle has 0, 1, 2"):
        find_candidates(config(layers=[1, 7]), measured)


def test_a_neuron_with_a_significant_class_shows_it(measured):
    first, second = find_candidates(config(), measured).names[:2]
    pairs = [tuple(map(int, name.split(":"))) for name in (first, second)]
    append_labels(
        measured.bundle.path,
        [
            make_label(measured.bundle, *pair, "wordnet", "noun.food", {}, significant=bool(sure))
            for pair, sure in zip(pairs, (1, 0), strict=True)
        ],
    )
    rows = find_candidates(config(), measured).table.rows
    assert [row["label"] for row in rows[:2]] == ["noun.food", None]


def test_all_that_is_wrong_is_told():
    wrong = CandidatesConfig(fdr=0, min_density=0.5, max_density=0.1, min_fired=0, min_types=1, min_lift=-1.0, n=0,
                             layers=[])  # fmt: skip
    keys = [problem.key for problem in wrong.problems()]
    assert keys == ["bundle", "fdr", "min_density", "min_fired", "min_types", "min_lift", "n", "layers"]
