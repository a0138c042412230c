"""What is compared, and what is refused before anything is computed."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.unit.interp.consistency.runs import COUNTS, N, V, means_of, run
from tests.unit.interp.planted import plant
from topklm.bundles import open_bundle
from topklm.errors import ConfigError, DataError
from topklm.interp.consistency import ConsistencyConfig, open_inputs
from topklm.interp.consistency import inputs as module
from topklm.interp.consistency.dictionary import profile_ceiling, profile_dictionary, read_matrix, row_dictionary


def opened(paths, **settings):
    config = ConsistencyConfig(bundles=[str(path) for path in paths], **settings)
    assert list(config.problems()) == []
    return open_inputs(config)


def test_profiles_are_scaled_and_centred_as_stated(tmp_path):
    """By the definition, neuron by neuron in float64: own mean, length 1, each type's mean over the neurons."""
    tables = means_of(1)[0]
    tables[0][:, 4] = 0.0
    tables[0][:, 5] = 7.0  # active, but the same on all types: no direction
    bundle = open_bundle(run(tmp_path, 1, means=tables, fired={layer: [9] * 4 + [0] + [9] * 19 for layer in (0, 1)}))
    types = np.flatnonzero(COUNTS >= 25)
    found = profile_dictionary(bundle.layer(0), types, "scaled")
    kept = [i for i in range(N) if i not in (4, 5)]
    assert found.index.tolist() == kept
    assert found.width == N
    rows = []
    for i in kept:
        row = [tables[0][v, i] for v in types]
        row = np.array(row) - np.mean(row)
        rows.append(row / np.sqrt(np.sum(row**2)))
    rows = np.array(rows) - np.mean(rows, axis=0)
    np.testing.assert_allclose(found.rows, rows / np.sqrt((rows**2).sum(1))[:, None], atol=2e-6)
    np.testing.assert_allclose(found.density, 9 / COUNTS.sum())


def test_quiet_neurons_keep_their_shape_in_scaled_alone(tmp_path):
    """With centre=token what is left of quiet neurons is the negative of the loud ones' mean: they look alike."""
    rng = np.random.default_rng(0)
    table = rng.exponential(size=(V, N)) * np.where(np.arange(N) < 4, 100.0, 0.01)
    bundle = open_bundle(run(tmp_path, 1, means=[table, table]))
    types = np.arange(V)

    def alike(centre):
        rows = profile_dictionary(bundle.layer(0), types, centre).rows[4:]
        return (rows @ rows.T)[np.triu_indices(N - 4, 1)]

    assert alike("token").min() > 0.99
    assert np.abs(alike("scaled")).max() < 0.7


def test_the_ceiling_is_the_likeness_of_two_corpora_of_the_whole_size(tmp_path):
    """Halves with noise of a standard deviation of 0.6 beside features of 1: whole corpora have 0.6 / sqrt 2."""
    rng = np.random.default_rng(0)
    types, neurons = 1500, 40
    feature = rng.normal(size=(types, neurons))
    halves, wholes = {}, []
    for name in "ab":
        means = feature + 0.6 * rng.normal(size=feature.shape)
        halves[name] = [plant(tmp_path / name, [means], np.full(types, 8))]
        wholes.append(feature + 0.6 / np.sqrt(2) * rng.normal(size=feature.shape))

    class Halved:
        half = staticmethod(halves.get)

    a, b = (plant(tmp_path / f"whole{i}", [means], np.full(types, 16)) for i, means in enumerate(wholes))
    a, b = (profile_dictionary(each.layer(0), np.arange(types), "scaled") for each in (a, b))
    found = profile_ceiling(Halved(), 0, np.arange(types), "scaled")
    assert found == pytest.approx((a.rows * b.rows).sum(1).mean(), abs=0.01)
    assert found == pytest.approx(1 / (1 + 0.6**2 / 2), abs=0.01)
    assert np.isnan(profile_ceiling(open_bundle(tmp_path / "a"), 0, np.arange(types), "scaled"))  # not halved


def test_types_and_bins_are_shared_by_all_bundles(tmp_path):
    rare = COUNTS.copy()
    rare[:2], rare[2:4] = 16, 24
    found = opened([run(tmp_path, 1), run(tmp_path, 2, counts=rare)], force=True)
    assert found.types.tolist() == list(range(2, V))
    assert len(found.bins) == V - 2
    assert len(set(found.bins[:38])) == len(set(found.bins[38:])) == 1
    assert found.layers(found.series[0]) == [0, 1]
    assert found.n_comparisons == 2
    assert "58 token types with at least 20 occurrences" in found.provenance()[-1]


def test_models_of_other_depths_are_compared_in_all_of_their_own_layers(tmp_path):
    shallow = [run(tmp_path, seed) for seed in (1, 2)]
    deep = [run(tmp_path, seed, name="deep", means=means_of(seed, 3)[0]) for seed in (1, 2)]
    for paths in ([*shallow, *deep], [*deep, *shallow]):
        found = opened(paths)
        assert sorted(found.layers(series) for series in found.series) == [[0, 1], [0, 1, 2]]
        assert found.n_comparisons == 5


def test_runs_that_were_trained_otherwise_are_told_where_their_checkpoints_are(tmp_path, monkeypatch):
    """Bundles do not know learning rates: without a word such runs would count as other seeds."""
    said = {}
    monkeypatch.setattr(module, "read_description", lambda path: (None, None, said[path.parents[1].name]))
    paths = [run(tmp_path, seed) for seed in (1, 2, 3)]
    assert opened(paths).warnings == []  # there are no checkpoints to ask
    for i, path in enumerate(paths):
        source = open_bundle(path).meta.model
        Path(source.path).mkdir(parents=True)
        said[source.run] = {
            "seed": i,
            "steps": 9,
            "data": {"seed": i, "seq_len": 4},
            "optim": {"lr": 0.1, "beta1": 0.9},
        }
    assert opened(paths).warnings == []
    said["run3"] |= {"optim": {"lr": 0.2, "beta1": 0.9}, "data": {"seed": 3, "seq_len": 8}}
    (warning,) = opened(paths).warnings
    assert warning.startswith("TopK k=3: run1 (seed 1) and run3 (seed 3) were trained with other ")
    assert "data.seq_len (4 and 8), optim.lr (0.1 and 0.2)" in warning


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello, this is nothing at all"])
def test_a_broken_file_is_told(tmp_path, suffix, content):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_matrix(tmp_path / f"a{suffix}", None, None)


@pytest.mark.parametrize(
    "matrix", [np.zeros((3, 4)), np.full((2, 2), "a"), np.ones((2, 2)) * 1j, np.ones(3), np.full((2, 2), np.nan)]
)
def test_what_has_no_directions_is_told(tmp_path, matrix):
    np.save(tmp_path / "a.npy", matrix)
    with pytest.raises(ConfigError, match="is no matrix"):
        read_matrix(tmp_path / "a.npy", None, None)


def test_files_that_numpy_cannot_hold_are_told(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_tensors

    save_tensors({"W_dec": torch.ones(2, 3, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    save_file({}, tmp_path / "none.safetensors")
    for name, why in (("b", "bfloat16"), ("none", "no array")):
        with pytest.raises(ConfigError, match=why):
            read_matrix(tmp_path / f"{name}.safetensors", None, None)
    with pytest.raises(DataError, match="too large"):
        row_dictionary(np.full((2, 2), 1e30, np.float32))


def test_everything_that_is_wrong_is_told_at_once(tmp_path):
    good, other = run(tmp_path, 1), run(tmp_path, 2, windows="x" * 64)
    with pytest.raises(ConfigError) as caught:
        opened([good, other, tmp_path / "none", run(tmp_path, 3, alpha=None)], layers=[1, 7], dictionary="unembedding")
    told = str(caught.value)
    for text in (
        "differ in the windows",
        "force=true",
        "is not a bundle",
        "is alone",
        "has no 7",
        "which is not there",
    ):
        assert text in told, text
    with pytest.raises(ConfigError, match="tokenizers differ"):
        opened([good, run(tmp_path, 4, tokenizer="u" * 64)], force=True)
    assert opened([good, other], force=True).warnings


def test_a_missing_scipy_is_told_before(tmp_path, monkeypatch):
    def missing(name, install):
        raise ConfigError(f"pip install '{install}'")

    paths = [run(tmp_path, 1), run(tmp_path, 2)]
    monkeypatch.setattr(module, "require", missing)
    with pytest.raises(ConfigError, match=r"topklm\[interp\]"):
        opened(paths)
    with pytest.raises(ConfigError, match=r"topklm\[interp\]"):  # the intervals over runs need it as well
        opened(paths, hungarian=False)


def test_wide_dictionaries_are_matched_by_nearest_neighbours_unless_asked(tmp_path, monkeypatch):
    paths = [run(tmp_path, 1), run(tmp_path, 2)]
    monkeypatch.setattr(module, "HUNGARIAN_WIDTH", N)
    assert opened(paths).full
    monkeypatch.setattr(module, "HUNGARIAN_WIDTH", N - 1)
    assert not opened(paths).full
    assert opened(paths, hungarian=True).full


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "at least two runs"),
        ({"files": ["a.npy"]}, "at least two runs"),
        ({"bundles": ["a", "b"], "files": ["a.npy", "b.npy"]}, "bundles: give"),
        ({"bundles": ["a", "b"], "second": "W_enc"}, "none of profiles"),
        ({"bundles": ["a", "b"], "second": "profiles"}, "already"),
        ({"bundles": ["a", "b"], "array": "W_dec"}, "array: is for files"),
        ({"files": ["a.npy", "b.npy"], "dictionary": "embedding"}, "array=NAME"),
        ({"files": ["a.npy", "b.npy"], "layers": [1]}, "layers: is for bundles"),
        ({"bundles": ["a", "b"], "layers": []}, "counted from 0"),
        ({"bundles": ["a", "b"], "null_draws": 0}, "without a null"),
        ({"bundles": ["a", "b"], "threshold": 1.0}, "not in [0, 1)"),
        ({"bundles": ["a", "b"], "min_count": 0}, "below 1"),
        ({"bundles": ["a", "b"], "seed": -1}, "negative"),
        ({"bundles": ["a", "b"], "out": ""}, "out: is empty"),
    ],
)
def test_rules_of_the_configuration(changes, text):
    assert text in "\n".join(map(str, dataclasses.replace(ConsistencyConfig(), **changes).problems()))


def test_matrices_are_found_by_their_names(tmp_path):
    rng = np.random.default_rng(0)
    decoder, encoder = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    sae, torch_like = tmp_path / "sae.safetensors", tmp_path / "torch.safetensors"
    save_file({"W_dec": decoder, "W_enc": np.ascontiguousarray(encoder.T), "b_dec": np.zeros(3)}, sae)
    save_file({"decoder.weight": np.ascontiguousarray(decoder.T), "encoder.weight": encoder}, torch_like)
    np.save(tmp_path / "one.npy", decoder)
    for path in (sae, torch_like, tmp_path / "one.npy"):
        np.testing.assert_array_equal(read_matrix(path, None, None), decoder)
    np.testing.assert_array_equal(read_matrix(sae, "W_enc", None), encoder)
    np.testing.assert_array_equal(read_matrix(torch_like, "encoder.weight", None), encoder)
    np.testing.assert_array_equal(read_matrix(sae, "W_enc", False), encoder.T)
    np.testing.assert_array_equal(read_matrix(tmp_path / "one.npy", None, True), decoder.T)
    save_file({"x": decoder, "y": decoder}, tmp_path / "two.safetensors")
    np.save(tmp_path / "vector.npy", np.zeros(3))
    np.save(tmp_path / "nan.npy", np.full((2, 2), np.nan))
    wrong = {
        "two.safetensors": "which of x, y",
        "vector.npy": r"\[3\] is no matrix",
        "nan.npy": "finite",
        "no.npy": "read",
    }
    for name, text in wrong.items():
        with pytest.raises(ConfigError, match=text):
            read_matrix(tmp_path / name, None, None)
    with pytest.raises(ConfigError, match="no array 'z'"):
        read_matrix(tmp_path / "two.safetensors", "z", None)


def test_files_are_checked_against_each_other(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in {"a": (5, 3), "b": (7, 3), "c": (5, 4)}.items():
        np.save(tmp_path / f"{name}.npy", rng.normal(size=shape))
    a, b, c = (str(tmp_path / f"{name}.npy") for name in "abc")
    found = open_inputs(ConsistencyConfig(files=[a, b]))  # other widths are fine
    assert found.layers(found.series[0]) == [None]
    assert found.dictionary(found.series[0].sources[1], None).rows.shape == (7, 3)
    with pytest.raises(ConfigError) as caught:
        open_inputs(ConsistencyConfig(files=[a, a, c]))
    assert "hold the same matrix" in str(caught.value)
    assert "[5, 3], [5, 3], [5, 4]" in str(caught.value)
