"""A bundle's entropies: against the functions on whole tables; their files, and what is refused."""

import dataclasses
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.unit.interp.tiny import collected, write_checkpoint, write_data
from topklm.bundles import incomparable, merge_bundles, open_bundle
from topklm.errors import ConfigError, DataError
from topklm.interp import EntropyConfig, semantic_entropy, token_entropy
from topklm.interp.entropy import layer_means
from topklm.interp.entropy.coherence import coherence, false_discovery
from topklm.interp.entropy.files import directory_of, measure_and_write, open_all, open_embedding
from topklm.interp.entropy.measure import convergence, extrapolated, measure
from topklm.interp.entropy.response import responses
from topklm.interp.entropy.semantic_entropy import unit
from topklm.interp.entropy.table import convergence_table, layers_table

FEW = {"min_count": 3, "draws": 50, "null_sets": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("topk")
    return collected(write_checkpoint(directory, data), directory / "b", snapshots=[30, 100])


def settings(**given):
    return EntropyConfig(bundle=["x"], **(FEW | given)).settings


@pytest.mark.parametrize("negative", ["clamp", "abs", "relu_first"])
@pytest.mark.parametrize("small_pieces", [False, True])
def test_equals_the_functions_on_whole_tables(bundle, negative, small_pieces, monkeypatch):
    if small_pieces:
        monkeypatch.setattr(layer_means, "COLUMN_BYTES", 900)
    chosen = settings(negative=negative)
    found = measure(bundle, chosen, bundle.embedding)
    for layer, columns in found.items():
        view = bundle.layer(layer)
        sums, positive = (view.table(name).dense(bundle.vocab_size) for name in ("sum", "positive"))
        expected = token_entropy(sums, bundle.counts, negative=negative, min_count=3, positive_sums=positive)
        np.testing.assert_allclose(columns["token_entropy"], expected, atol=1e-12)
        np.testing.assert_allclose(columns["effective_tokens"], np.exp(expected), rtol=1e-12)
        expected = semantic_entropy(sums, bundle.counts, bundle.embedding, min_count=3, leave_one_out=True)
        np.testing.assert_allclose(columns["semantic_entropy"], expected, atol=1e-9)
        assert (columns["response_tokens_used"] == columns["response_tokens"]).all()
    p = np.concatenate([columns["coherence_p"] for columns in found.values()])
    np.testing.assert_array_equal(false_discovery(p), np.concatenate([c["coherence_q"] for c in found.values()]))
    assert ((p > 0) & (p <= 1)).sum() == (~np.isnan(p)).sum() > 10


@pytest.mark.parametrize("over", ["all", "positive"])
def test_a_threshold_for_a_layer_or_for_all_layers(bundle, over):
    kept = bundle.counts >= 3
    means = {
        layer: bundle.layer(layer).table("sum").dense(bundle.vocab_size)[kept] / bundle.counts[kept, None]
        for layer in bundle.layers
    }

    def tau(values):
        flat = np.sort(np.maximum(values, 0).ravel())
        flat = flat if over == "all" else flat[flat > 0]
        return 0.7 * flat[math.ceil(0.9 * len(flat)) - 1]

    for scope in ("layer", "all"):
        chosen = settings(scope=scope, over=over, percentile=90.0, leave_one_out=False)
        found = measure(bundle, chosen, bundle.embedding)
        everything = np.concatenate([each.ravel() for each in means.values()])
        for layer, columns in found.items():
            own = tau(means[layer] if scope == "layer" else everything)
            for neuron, response in enumerate(responses(means[layer], own, 1000)):
                assert columns["response_tokens"][neuron] == response.n
                rows = unit(bundle.embedding[kept][response.tokens])
                value = coherence(rows, bundle.counts[kept][response.tokens]).value
                assert columns["coherence"][neuron] == pytest.approx(value, abs=1e-9, nan_ok=True)


def test_the_cap_is_reported(bundle):
    columns = measure(bundle, settings(cap=2, percentile=1.0, over="all"), bundle.embedding)[2]
    assert columns["response_tokens_used"].max() == 2 < columns["response_tokens"].max()


def test_convergence_is_over_the_types_that_count_at_the_end(bundle, tmp_path):
    rows = convergence(bundle, settings())
    assert [row["tokens"] for row in rows[:3]] == [32, 104, bundle.n_tokens]
    counted = bundle.counts >= 3
    for layer in bundle.layers:
        mine = [row for row in rows if row["layer"] == layer]
        entropies = []
        for number, parts in enumerate(bundle.snapshots()):
            joined = merge_bundles(parts, tmp_path / f"{layer}-{number}")
            sums, counts = joined.layer(layer).table("sum").dense(bundle.vocab_size), joined.counts
            entropies.append(token_entropy(sums[counted], counts[counted], min_count=1))
        known = ~np.isnan(entropies).any(axis=0)
        assert [row["token_entropy"] for row in mine] == pytest.approx([each[known].mean() for each in entropies])
        assert mine[-1]["neurons"] == known.sum()
        assert mine[-1]["split_half_error"] > 0


def test_the_extrapolated_limit():
    assert extrapolated([5 - 2 * 0.5**i for i in range(4)]) == pytest.approx(5)
    assert np.isnan(extrapolated([1.0, 2.0]))
    assert np.isnan(extrapolated([1.0, 2.0, 2.9]))  # hardly slower: the end is not in sight
    assert np.isnan(extrapolated([1.0, 2.0, 1.5]))
    assert np.isnan(extrapolated([1.0, 1.0, 1.0]))


def test_files_and_starting_again(bundle, caplog):
    config = EntropyConfig(bundle=[str(bundle.path)], **FEW)
    (opened,) = open_all(config)
    content = measure_and_write(config, opened, open_embedding(config, [opened], opened))
    directory = directory_of(config, opened)
    assert directory == bundle.path / "entropy" / "recommended"
    neurons = pq.read_table(directory / "neurons.parquet").to_pydict()
    assert neurons["layer"] == [layer for layer in range(3) for _ in range(16)]
    measured = measure(bundle, config.settings, bundle.embedding)
    for name, column in measured[1].items():
        np.testing.assert_array_equal(neurons[name][16:32], column)
    row = content["layers"][1]
    entropy = measured[1]["token_entropy"]
    known = entropy[~np.isnan(entropy)]
    assert row["token_entropy_mean"] == pytest.approx(known.mean())
    assert row["token_entropy_sd"] == pytest.approx(known.std(ddof=1))
    assert len((directory / "layers.csv").read_text().splitlines()) == 4
    assert json.loads((directory / "entropy.json").read_text()) == content
    assert layers_table(content).row_count == convergence_table(content).row_count == 3
    before = (directory / "entropy.json").stat().st_mtime_ns
    assert measure_and_write(config, opened, opened.embedding) == content
    assert (directory / "entropy.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="overwrite=true"):
        measure_and_write(dataclasses.replace(config, bins=50), opened, opened.embedding)
    (directory / "entropy.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        measure_and_write(config, opened, opened.embedding)
    open_bundle(bundle.path).check()  # results beside a bundle's own files leave it whole


def test_what_does_not_fit_is_told_at_once(bundle, tmp_path):
    config = EntropyConfig(bundle=[str(bundle.path), str(tmp_path / "none")], min_count=10**6)
    with pytest.raises(ConfigError) as error:
        open_all(config)
    assert "not a bundle" in str(error.value)
    assert "occurred 1000000 times" in str(error.value)
    np.save(tmp_path / "e.npy", np.zeros((3, 4)))
    with pytest.raises(ConfigError, match=r"\[3, 4\]"):
        open_embedding(EntropyConfig(bundle=["x"], embedding=str(tmp_path / "e.npy")), [bundle], bundle)
    with pytest.raises(ConfigError, match="cannot be read"):
        open_embedding(EntropyConfig(bundle=["x"], embedding=str(tmp_path / "no.safetensors")), [bundle], bundle)
    wrong = EntropyConfig(bundle=["a", "b"], out="c", percentile=0.0, cap=1, embedding="f.npy", leave_one_out=True)
    assert {problem.key for problem in wrong.problems()} == {"out", "percentile", "cap", "leave_one_out"}


def test_bundles_over_other_tokens_do_not_compare(bundle, data, tmp_path):
    same = collected(write_checkpoint(tmp_path / "dense", data, topk=None), tmp_path / "same")
    assert incomparable([bundle, same]) == []
    fewer = collected(tmp_path / "dense" / "model.pth", tmp_path / "fewer", tokens=100)
    (reason,) = incomparable([bundle, fewer])
    assert "256 and 104" in reason or "numbers of tokens" in reason
    other = collected(tmp_path / "dense" / "model.pth", tmp_path / "other", context=4)
    assert "context (8 and 4 tokens)" in incomparable([bundle, other])[0]
