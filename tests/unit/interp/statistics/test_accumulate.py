"""The accumulator of a layer, fed with planted activations, against the definitions in float64."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.bundles.reference import SETTINGS, Tokens, assert_equal, brute
from topklm.errors import NonFiniteError
from topklm.interp.statistics.accumulate import LayerAccumulator
from topklm.interp.statistics.reading import ReadTopK, flat_nonzero, read_layer
from topklm.interp.statistics.token_batch import TokenBatch, hash32
from topklm.sparsity import TopKConfig, topk
from topklm.sparsity.annealing import annealed_topk
from topklm.sparsity.registry import build_activation

V, K = 9, 3
CPU = torch.device("cpu")
KINDS = ["topk", "identity", "annealing", "pre", "dense", "read", "read_identity", "read_all"]


class AnyMask:
    """An activation of another kind: per neuron, everything above 0.5; a margin on even tokens only."""

    def __init__(self, cfg=None):
        pass

    def __call__(self, x, alpha):
        return torch.where(self.selected(x), x.relu(), 0)

    def selected(self, x):
        return x > 0.5

    def margin(self, x):
        margin = torch.where(self.selected(x), x, torch.inf).amin(-1) - torch.where(
            self.selected(x), -torch.inf, x
        ).amax(-1)
        flat = margin.flatten()
        flat[1::2] = torch.nan
        return flat.view_as(margin)


def pre_activations(seed, n, width, dtype=torch.float32):
    """Ties, zeros, negative zeros, tokens with fewer than k positive entries, a silent neuron."""
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = (x * 10).round() / 8 - 0.5 * (torch.arange(n) % 3 == 0)[:, None]
    x[:, 0] = -7
    x[::5, 1] = -0.0
    return x.to(dtype)


def outputs(kind, x):
    """(output, pre, activation, alpha, site, cut) of a block of this kind whose dense output would be x."""
    cfg = TopKConfig(k=K, anneal_form="identity" if kind == "identity" else "blend")
    activation = build_activation(cfg)
    if kind in ("topk", "identity"):
        return activation(x, None), x, activation, 0.0, "post", None
    if kind == "annealing":
        return annealed_topk(x, K, torch.tensor(0.25)), x, activation, 0.25, "post", None
    if kind == "pre":
        return topk(x, K), x, activation, 0.0, "pre", None
    if kind == "other":
        return AnyMask()(x, None), x, AnyMask(), 0.0, "post", None
    cut = {"dense": None, "read": ReadTopK(k=K), "read_identity": ReadTopK(k=K, relu=False)}
    return x, None, None, None, "post", cut.get(kind, ReadTopK(k=x.shape[-1]))


def reference_tokens(kind, x, types, positions, next_fired):
    order = np.argsort(-x.double().numpy(), axis=1, kind="stable")
    selected = np.zeros(x.shape, bool)
    np.put_along_axis(selected, order[:, : x.shape[1] if kind == "read_all" else K], True, axis=1)
    x = x.double().numpy()
    values = {
        "identity": np.where(selected, x, 0), "read_identity": np.where(selected, x, 0),
        "annealing": np.where(selected & (x > 0), x, np.float32(0.25) * x), "pre": x, "dense": x,
    }.get(kind, np.where(selected, np.maximum(x, 0), 0))  # fmt: skip
    if kind == "dense":
        return Tokens(types, positions, values, values > 0, next_fired)
    return Tokens(types, positions, values, selected & (x > 0), next_fired, pre=x, selected=selected)


def accumulator(kind, width, has_next=True, layer=0):
    signed = kind not in ("topk", "read", "read_all", "other")
    return LayerAccumulator(
        layer, width, V, SETTINGS, CPU, selects=kind != "dense", signed=signed, has_next=has_next
    )  # fmt: skip


def feed(acc, kind, x, types, positions, next_fired, rows):
    """Give the accumulator some of the tokens as one batch of one sequence."""
    output, pre, activation, alpha, site, cut = outputs(kind, x[rows][None])
    reading = read_layer(output, pre, activation, alpha=alpha, site=site, cut=cut)
    acc.add(reading, TokenBatch.of(types[rows], positions[rows]))
    acc.add_runs(reading, reading.fired.to(torch.int16))
    acc.add_next(reading.fired, torch.from_numpy(next_fired[rows]))
    return reading


def planted(seed, n=70, width=6, dtype=torch.float32):
    rng = np.random.default_rng(seed)
    x = pre_activations(seed, n, width, dtype)
    positions = rng.permutation(5 * n)[:n].astype(np.int64)
    return x, rng.integers(0, V, n), positions, rng.random((n, width)) < 0.4


def statistics(acc, types):
    return acc.stats(np.arange(V), np.bincount(types, minlength=V) > 0)


def with_positive_table(expected, kind, tokens):
    """The reference has that table for dense layers; here also where a selection keeps negative numbers."""
    if kind in ("identity", "annealing", "pre", "read_identity"):
        as_dense = Tokens(tokens.types, tokens.positions, tokens.values, tokens.fired)
        expected.tables["positive"] = brute(as_dense, V).tables["positive"]
    return expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_statistic_is_its_definition(kind, dtype):
    x, types, positions, next_fired = planted(1, dtype=dtype)
    acc = accumulator(kind, x.shape[1])
    for rows in (slice(0, 9), slice(9, 10), slice(10, 70)):
        feed(acc, kind, x, types, positions, next_fired, rows)
    tokens = reference_tokens(kind, x, types, positions, next_fired)
    if kind == "annealing":  # alpha times x is rounded to the dtype
        tokens.values = outputs(kind, x[None])[0][0].double().numpy()
    expected = with_positive_table(brute(tokens, V), kind, tokens)
    assert_equal(statistics(acc, types), expected)


def test_an_activation_of_another_kind_tells_its_selection_and_margin():
    x, types, positions, next_fired = planted(2)
    acc = accumulator("other", 6)
    feed(acc, "other", x, types, positions, next_fired, slice(None))
    values = np.where(x > 0.5, x, 0).astype(np.float64)
    tokens = Tokens(
        types, positions, values, values > 0, next_fired, pre=x.double().numpy(), selected=(x > 0.5).numpy()
    )
    whole = statistics(acc, types)
    expected = brute(tokens, V)
    for name in ("sum", "square_sum", "fired", "histogram", "l0_histogram"):
        assert np.array_equal(getattr(whole, name), getattr(expected, name)), name
    even = brute(tokens[np.arange(0, 70, 2)], V)
    for name in ("margin_count", "margin_least", "margin_histogram", "near_misses"):
        assert np.array_equal(getattr(whole, name), getattr(even, name)), name
    np.testing.assert_allclose(whole.margin_sum, even.margin_sum)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 500), split=st.lists(st.integers(0, 70), max_size=4),
    batches=st.integers(1, 9), order=st.randoms(),
)  # fmt: skip
def test_order_batches_and_merging_change_nothing(kind, seed, split, batches, order):
    x, types, positions, next_fired = planted(seed)
    whole = accumulator(kind, 6)
    feed(whole, kind, x, types, positions, next_fired, slice(None))
    shuffled = list(range(70))
    order.shuffle(shuffled)
    parts = []
    borders = [0, *sorted(split), 70]
    for a, b in itertools.pairwise(borders):
        part, mine = accumulator(kind, 6), np.array(shuffled[a:b], np.int64)
        for start in range(0, len(mine), batches):
            feed(part, kind, x, types, positions, next_fired, mine[start : start + batches])
        parts.append(statistics(part, types[mine]))
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert_equal(merged, statistics(whole, types))


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_from_saved_statistics_is_bit_identical(kind):
    x, types, positions, next_fired = planted(5)
    through, first, second = (accumulator(kind, 6) for _ in range(3))
    for rows in (slice(0, 30), slice(30, 70)):
        feed(through, kind, x, types, positions, next_fired, rows)
    feed(first, kind, x, types, positions, next_fired, slice(0, 30))
    second.load(statistics(first, types[:30]), np.arange(V), 30)
    feed(second, kind, x, types, positions, next_fired, slice(30, 70))
    assert_equal(statistics(second, types), statistics(through, types), rtol=0)


def test_what_is_not_finite_is_told():
    for bad in (torch.nan, torch.inf, -torch.inf):
        x, types, positions, next_fired = planted(6)
        x[3, 2] = bad
        acc = accumulator("dense", 6, layer=4)
        feed(acc, "dense", x, types, positions, next_fired, slice(None))
        with pytest.raises(NonFiniteError, match="layer 4: 1 of 420 activations"):
            statistics(acc, types)


def test_contexts_survive_the_switch_to_large_batches():
    """Many tokens: first pieces, then whole batches, against sorting everything."""
    n, width = 20_000, 4
    x = torch.randn(n, width)
    types, positions = np.zeros(n, np.int64), np.random.default_rng(0).permutation(n).astype(np.int64)
    next_fired = np.zeros((n, width), bool)
    for kind in ("dense", "topk"):
        acc = accumulator(kind, width)
        for start in range(0, n, 3000):
            feed(acc, kind, x, types, positions, next_fired, slice(start, start + 3000))
        values = topk(x, K).numpy() if kind == "topk" else x.numpy()
        stats = statistics(acc, types)
        for i in range(width):
            best = np.lexsort((positions, -values[:, i]))[: SETTINGS.top_contexts]
            assert np.array_equal(stats.top.position[i], positions[best])
            keys = hash32(positions) * np.int32(hash32(np.array([i]))[0] | 1)
            one_to_two = np.flatnonzero((values[:, i] >= 1) & (values[:, i] < 2))
            sampled = one_to_two[np.argsort(keys[one_to_two])][: SETTINGS.sample_contexts]
            assert np.array_equal(stats.sample.position[i * 32 + 20], positions[sampled])


def test_the_sample_is_uniform():
    """Of 4,000 tokens that all excite 64 neurons alike, every quarter is sampled equally often."""
    n, width = 4000, 64
    acc = accumulator("dense", width)
    next_fired = np.zeros((n, width), bool)
    feed(acc, "dense", torch.ones(n, width), np.zeros(n, np.int64), np.arange(n), next_fired, slice(None))
    sampled = acc.contexts.sample.position[acc.contexts.sample.position >= 0]
    assert len(sampled) == width * SETTINGS.sample_contexts
    assert len(np.unique(sampled)) > 100  # each neuron has its own
    quarters = np.bincount(sampled * 4 // n, minlength=4)
    assert (abs(quarters - 32) < 5 * np.sqrt(32)).all()


@given(st.lists(st.floats(-2, 2, width=32), max_size=30))
def test_flat_nonzero(values):
    x = torch.tensor(values, dtype=torch.float32).view(-1, 1)
    assert flat_nonzero(x).tolist() == [i for i, v in enumerate(values) if v]
    assert flat_nonzero(x > 0).tolist() == [i for i, v in enumerate(values) if v > 0]


def test_a_near_miss_is_decided_as_in_float64():
    """0.6 as float32 lies above the bound 1 - 0.4, although the bound as float32 is the same number."""
    pre = torch.tensor([[[1.0, 0.6, 0.5999]]])
    options = dataclasses.replace(SETTINGS, near_miss=0.4)
    acc = LayerAccumulator(0, 3, V, options, CPU, selects=True, signed=False, has_next=False)
    activation = build_activation(TopKConfig(k=1))
    acc.add(read_layer(topk(pre, 1), pre, activation, alpha=0.0), TokenBatch.of(np.zeros(1, int), np.zeros(1, int)))
    assert statistics(acc, np.zeros(1, int)).near_misses.tolist() == [0, 1, 0]


def test_of_equal_hashes_the_first_position_is_sampled():
    hashes = hash32(np.arange(200_000))
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(np.diff(hashes[order]) == 0)
    assert len(same)
    for i in same:
        early, late = np.sort(order[[i, i + 1]])
        options = dataclasses.replace(SETTINGS, sample_contexts=1)
        acc = LayerAccumulator(0, 1, V, options, CPU, selects=False, signed=True, has_next=False)
        for position in (late, early):
            reading = read_layer(torch.ones(1, 1, 1), None, None, alpha=None)
            acc.add(reading, TokenBatch.of(np.zeros(1, int), np.array([position])))
        assert acc.contexts.sample.position.max() == early


def test_a_pass_that_was_begun_before_runs_were_counted_ends_without_them():
    x, types, positions, next_fired = planted(3)
    begun = accumulator("topk", x.shape[1])
    feed(begun, "topk", x, types, positions, next_fired, slice(0, 30))
    older = dataclasses.replace(statistics(begun, types[:30]), fired_runs=None)
    acc = accumulator("topk", x.shape[1])
    acc.load(older, np.arange(V), 30)
    feed(acc, "topk", x, types, positions, next_fired, slice(30, 70))
    assert statistics(acc, types).fired_runs is None
    assert "fired_runs" not in statistics(acc, types).to_arrays()
