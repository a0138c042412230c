"""Bundles of planted activations: what is written is read, parts add up to the whole, damage is told."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.bundles.reference import SETTINGS, assert_equal, brute, code, meta_of, random_tokens
from topklm.bundles import Sketch, TokenTable, merge_bundles, open_bundle, write_bundle
from topklm.bundles.exponent import bounds, code_of
from topklm.bundles.merge import windows_hash
from topklm.bundles.neurons import neuron_columns, tokens_since_fired
from topklm.errors import DataError

V, CONTEXT = 9, 5


def planted(seed, windows):
    """Layer 0 a TopK layer, layer 1 (the last) a dense one, over the tokens of some windows."""
    n = len(windows) * CONTEXT
    layers = [random_tokens(seed, n, vocab=V), random_tokens(seed + 1, n, vocab=V, sparse=False, last=True)]
    for layer in layers:
        layer.types = layers[0].types
        layer.positions = (np.asarray(windows)[:, None] + np.arange(CONTEXT)).ravel()
    return layers


def write(path, layers, **meta):
    windows = np.unique(layers[0].positions - (layers[0].positions % CONTEXT))
    counts = np.bincount(layers[0].types, minlength=V)
    meta = dataclasses.replace(
        meta_of(len(windows), CONTEXT, windows_hash(windows), {"0": "topk", "1": "dense"}), **meta
    )
    write_bundle(path, meta, counts, windows, enumerate(brute(layer, V) for layer in layers))
    return open_bundle(path)


@pytest.fixture
def layers():
    return planted(0, range(0, 60, 5))


@pytest.fixture
def bundle(tmp_path, layers):
    return write(tmp_path / "whole", layers)


def test_what_is_written_is_read(bundle, layers):
    assert bundle.layers == [0, 1]
    assert bundle.n_tokens == 60
    assert np.array_equal(bundle.counts, np.bincount(layers[0].types, minlength=V))
    for number, layer in enumerate(layers):
        view = bundle.layer(number)
        assert_equal(view.whole(), brute(layer, V), rtol=0)
        assert view.stats.tables == {}
        expected = np.zeros((V, 6))
        np.add.at(expected, layer.types, layer.values.astype(np.float64))
        np.testing.assert_allclose(view.table("sum").dense(V), expected, rtol=1e-12, atol=1e-12)
        for rows in (1, 4, 100):
            types, blocks = zip(*view.table_blocks("sum", rows), strict=True)
            assert np.array_equal(np.concatenate(types), bundle.types)
            assert np.array_equal(np.concatenate(blocks), view.table("sum").rows)
    assert [bundle.layer(i).kind for i in (0, 1)] == ["topk", "dense"]


def test_the_positive_part_of_a_layer_without_negatives_is_its_sum(bundle):
    assert np.array_equal(bundle.layer(0).table("positive").rows, bundle.layer(0).table("sum").rows)
    assert (bundle.layer(1).table("positive").rows >= bundle.layer(1).table("sum").rows).all()
    with pytest.raises(DataError, match=r"has no table 'other'; there are sum, positive, fired"):
        bundle.layer(0).table("other")
    with pytest.raises(DataError, match="no layer 2; it has 0, 1"):
        bundle.layer(2)


def test_parquet_has_every_scalar(bundle, layers):
    pq = pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(bundle.path / "neurons.parquet").to_pydict()
    assert len(table["neuron"]) == 12
    for row in range(12):
        layer, i = layers[row // 6], row % 6
        a, fired = layer.values[:, i].astype(np.float64), layer.fired[:, i]
        assert (table["step"][row], table["layer"][row], table["neuron"][row]) == (7, row // 6, i)
        assert table["kind"][row] == ("topk", "dense")[row // 6]
        assert table["fired"][row] == fired.sum()
        assert table["silent"][row] == (not fired.any())
        assert table["density"][row] == pytest.approx(fired.mean())
        assert table["mean"][row] == pytest.approx(a.mean())
        assert table["variance"][row] == pytest.approx(a.var(), abs=1e-12)
        assert table["maximum"][row] == a.max()
        active = a[a > 0].mean() if fired.any() else np.nan
        assert table["mean_active"][row] == pytest.approx(active, nan_ok=True)
        negative = -a[a < 0].sum() / np.abs(a).sum() if a.any() else np.nan
        assert table["negative_share"][row] == pytest.approx(negative, nan_ok=True)
        expected = (fired & layer.next_fired[:, i]).sum() / fired.sum() if row < 6 and fired.any() else np.nan
        assert table["persistence"][row] == pytest.approx(expected, nan_ok=True)
        since = 60 - 1 - np.flatnonzero(fired).max() if fired.any() else 60
        assert table["tokens_since_fired"][row] == since
        assert np.isnan(table["near_miss_rate"][row]) == (row >= 6)


def test_the_mean_while_firing_is_not_that_of_all_positive_activations(tmp_path, layers):
    """Beside a cut (alpha > 0, before it) neurons are positive that did not fire."""
    bundle = write(tmp_path / "b", layers)
    meta = dataclasses.replace(bundle.meta, layers={"0": "dense", "1": "dense"})
    columns = [neuron_columns(meta, i, bundle.layer(i).stats, bundle.windows)["mean_active"] for i in (0, 1)]
    assert np.isnan(columns[0]).all()
    assert not np.isnan(columns[1]).all()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000), sparse=st.booleans(), cuts=st.lists(st.integers(0, 40), max_size=3), order=st.randoms()
)
def test_parts_in_any_order_add_up_to_the_whole(seed, sparse, cuts, order):
    tokens = random_tokens(seed, sparse=sparse, last=bool(seed % 2))
    borders = [0, *sorted(cuts), 40]
    parts = [brute(tokens[slice(a, b)], V) for a, b in itertools.pairwise(borders)]
    order.shuffle(parts)
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert_equal(merged, brute(tokens, V))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), max_size=30), st.integers(0, 3), st.randoms())
def test_a_sketch_keeps_the_best_whatever_the_order(entries, size, order):
    entries = [(cell, key, position) for position, (cell, key) in enumerate(entries)]
    shuffled = list(entries)
    order.shuffle(shuffled)
    a, b = Sketch(4, size), Sketch(4, size)
    for sketch, offers in ((a, shuffled[::2]), (b, shuffled[1::2])):
        cell, key, position = (np.array([e[i] for e in offers], np.int64) for i in range(3))
        changed = sketch.offer(cell, key.astype(float), position, key * 10.0)
        assert set(changed) <= set(cell)
    both = a.merge(b)
    for cell in range(4):
        expected = sorted((key, position) for c, key, position in entries if c == cell)[:size]
        found = list(zip(both.key[cell], both.position[cell], strict=True))[: len(expected)]
        assert found == expected
        assert np.isinf(both.key[cell, len(expected) :]).all()
        assert (both.position[cell, len(expected) :] == -1).all()


@given(st.floats(width=64))
def test_bins_are_the_powers_of_two(value):
    expected = code(value) if not np.isnan(value) else None
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    found = int(code_of(np.array([value]))[0])
    if expected is None:
        assert found in (255, 511)
        return
    assert found == expected
    low, high = (float(edge[0]) for edge in bounds(np.array([found])))
    assert low <= rounded <= high
    assert 0 < abs(rounded) < 2.0**-126 or rounded == 0 or np.isinf(rounded) or max(abs(low), abs(high)) > abs(rounded)


@given(st.integers(0, 5), st.integers(0, 300), st.integers(0, 2**32))
def test_a_table_is_the_same_dense_and_sparse(n_types, width, seed):
    rng = np.random.default_rng(seed)
    for density in (0.0, 0.3, 1.0):
        rows = np.where(rng.random((n_types, width)) < density, rng.normal(size=(n_types, width)), 0.0)
        table = TokenTable(types=np.arange(n_types), rows=rows)
        arrays = table.to_arrays("t")
        assert sum(a.nbytes for a in arrays.values()) <= rows.nbytes + 8 * (n_types + 1)
        assert np.array_equal(TokenTable.from_arrays("t", arrays, table.types, width).rows, rows)
    sparse = np.zeros((4, 1000))
    sparse[2, 7] = 1.5
    assert set(TokenTable(types=np.arange(4), rows=sparse).to_arrays("t")) == {"t.indptr", "t.index", "t.value"}


def test_bundles_merge_on_disk(tmp_path, bundle, layers):
    halves = [planted_rows(layers, rows) for rows in (slice(0, 25), slice(25, 60))]
    paths = [write(tmp_path / name, half).path for name, half in zip("ab", halves, strict=True)]
    merged = merge_bundles(paths, tmp_path / "merged")
    again = merge_bundles(paths[::-1], tmp_path / "again")
    assert merged.n_tokens == again.n_tokens == 60
    assert np.array_equal(merged.windows, bundle.windows)
    assert merged.meta.windows_sha256 == bundle.meta.windows_sha256
    for other in (merged, again):
        assert np.array_equal(other.counts, bundle.counts)
        for number in (0, 1):
            assert_equal(other.layer(number).whole(), bundle.layer(number).whole())


def planted_rows(layers, rows):
    return [layer[rows] for layer in layers]


def test_what_does_not_belong_together_does_not_merge(tmp_path, bundle, layers):
    with pytest.raises(DataError, match="hold the same tokens"):
        merge_bundles([bundle.path, bundle.path], tmp_path / "x")
    other = planted(3, range(60, 80, 5))
    near = dataclasses.replace(SETTINGS, near_miss=0.2)
    other = write(tmp_path / "other", other, settings=near)
    with pytest.raises(DataError, match=r"do not merge: settings.near_miss: 0.1 and 0.2"):
        merge_bundles([bundle, other], tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(DataError, match="is there already"):
        write(tmp_path / "other", planted(4, [0]))


def test_damage_is_told(bundle):
    path = bundle.path
    file = path / "layer_01.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    damaged = open_bundle(path)
    damaged.layer(0).table()
    with pytest.raises(DataError, match=r"layer_01.safetensors is damaged \(its SHA-256 differs\)"):
        damaged.layer(1).stats  # noqa: B018
    assert open_bundle(path, verify=False).layer(1).stats.sum.shape == (6,)
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match="bytes instead of"):
        open_bundle(path)
    file.unlink()
    with pytest.raises(DataError, match=r"layer_01.safetensors is missing"):
        open_bundle(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {**m, "n_tokens": 61}, "it was changed"),
        (lambda m: {**m, "format_version": 2}, "format version 2, this program reads 1; update topklm"),
        (lambda m: {**m, "format_version": 0}, "collect it again"),
        (lambda m: {k: v for k, v in m.items() if k != "sha256"}, "damaged"),
    ],
)
def test_a_changed_meta_is_told(bundle, change, message):
    meta = bundle.path / "meta.json"
    meta.write_text(json.dumps(change(json.loads(meta.read_text()))))
    with pytest.raises(DataError, match=message):
        open_bundle(bundle.path)


def test_no_bundle_and_an_unfinished_one(tmp_path):
    with pytest.raises(DataError, match=r"meta.json is missing\); python -m apps.collect"):
        open_bundle(tmp_path)
    (tmp_path / "b.tmp").mkdir()
    with pytest.raises(DataError, match="is not finished; start the same command again"):
        open_bundle(tmp_path / "b")


def test_positions_are_found_again(bundle):
    place = bundle.locate(57)
    assert (place.part.source, place.index, place.window) == ("a", 57, 55)
    parts = [dataclasses.replace(part, n_tokens=40) for part in bundle.meta.corpus.parts]
    meta = dataclasses.replace(bundle.meta, corpus=dataclasses.replace(bundle.meta.corpus, parts=parts))
    far = dataclasses.replace(bundle, meta=meta)
    place = far.locate(57)
    assert (place.part.source, place.index, place.window) == ("b", 17, 15)


def test_tokens_since_a_neuron_fired_are_counted_in_the_bundle():
    windows = np.array([0, 10, 50])
    last = np.array([-1, 0, 4, 12, 50, 54])
    assert tokens_since_fired(last, windows, 5).tolist() == [15, 14, 10, 7, 4, 0]


def test_statistics_of_no_tokens_are_neutral():
    tokens = random_tokens(1)
    nothing = brute(tokens[slice(0, 0)], V)
    assert_equal(nothing.merge(brute(tokens, V)), brute(tokens, V), rtol=0)
