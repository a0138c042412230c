import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.data.order import BLOCK, SampleOrder, n_unused_tokens, n_windows

sources = st.dictionaries(
    st.sampled_from("abcd"), st.tuples(st.integers(1, 300), st.floats(0.01, 10)), min_size=1, max_size=4
)
starts = st.integers(0, 3 * BLOCK)


def order_of(drawn: dict[str, tuple[int, float]], seed: int) -> SampleOrder:
    return SampleOrder({n: w for n, (w, _) in drawn.items()}, {n: x for n, (_, x) in drawn.items()}, seed)


@given(n_tokens=st.integers(0, 10_000), seq_len=st.integers(1, 300))
def test_windows_and_the_tail_are_all_tokens(n_tokens, seq_len):
    windows, tail = n_windows(n_tokens, seq_len), n_unused_tokens(n_tokens, seq_len)
    assert tail == (n_tokens - (windows * seq_len + 1) if windows else n_tokens)
    assert 0 <= tail <= seq_len  # one more window would need seq_len more
    if windows:
        assert (windows - 1) * seq_len + seq_len + 1 <= n_tokens


@settings(max_examples=60, deadline=None)
@given(drawn=sources, seed=st.integers(0, 2**63), a=starts, n=st.integers(0, 700), m=st.integers(0, 700))
def test_samples_do_not_depend_on_where_reading_starts(drawn, seed, a, n, m):
    source, window = order_of(drawn, seed).samples(a, a + n + m)
    parts = [order_of(drawn, seed).samples(a, a + n), order_of(drawn, seed).samples(a + n, a + n + m)]
    np.testing.assert_array_equal(source, np.concatenate([p[0] for p in parts]))
    np.testing.assert_array_equal(window, np.concatenate([p[1] for p in parts]))


@settings(max_examples=30, deadline=None)
@given(drawn=sources, seed=st.integers(0, 1000), n=starts)
def test_every_source_covers_its_windows_once_per_epoch(drawn, seed, n):
    order = order_of(drawn, seed)
    source, window = order.samples(0, n)
    counts = order.counts(n)
    np.testing.assert_array_equal(np.bincount(source, minlength=len(drawn)), counts)
    for s, name in enumerate(order.names):
        windows, seen = drawn[name][0], window[source == s]
        assert order.epochs(n)[name] == pytest.approx(counts[s] / windows)
        for first in range(0, len(seen), windows):
            epoch = seen[first : first + windows]
            assert len(set(epoch.tolist())) == len(epoch)
            assert 0 <= epoch.min() <= epoch.max() < windows


def test_epochs_differ_and_seeds_differ():
    one = SampleOrder({"a": 200}, {"a": 1.0}, 0).samples(0, 400)[1]
    assert (one[:200] != one[200:]).mean() > 0.9
    assert (one[:200] != np.arange(200)).mean() > 0.9
    other = SampleOrder({"a": 200}, {"a": 1.0}, 1).samples(0, 400)[1]
    assert (one != other).mean() > 0.9
    two = SampleOrder({"a": 200, "b": 200}, {"a": 1.0, "b": 1.0}, 0)
    source, window = two.samples(0, 800)
    assert (window[source == 0][:200] != window[source == 1][:200]).mean() > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_weights_are_honoured(seed):
    weights = {"a": 5.0, "b": 3.0, "c": 0.1, "d": 1.9}
    order = SampleOrder(dict.fromkeys(weights, 1000), weights, seed)
    n = 100_000
    source, _ = order.samples(0, n)
    share = np.array([weights[name] for name in order.names]) / 10
    counts = np.bincount(source, minlength=4)
    assert (np.abs(counts - n * share) <= 4 * np.sqrt(n * share * (1 - share))).all()
    # stronger than independent draws: at the border of a block, off by less than one sample
    assert (np.abs(order.counts(25 * BLOCK) - 25 * BLOCK * share) < 1).all()


def test_each_sample_has_the_sources_share_as_its_probability():
    """Over seeds, at places inside a block: no position prefers a source, so small batches are mixed as well."""
    n_seeds, share = 1500, 0.25
    hits = np.zeros(8)
    for seed in range(n_seeds):
        hits += SampleOrder({"a": 3, "b": 3}, {"a": 1.0, "b": 3.0}, seed).samples(BLOCK - 4, BLOCK + 4)[0] == 0
    assert (np.abs(hits - n_seeds * share) < 4.5 * np.sqrt(n_seeds * share * (1 - share))).all()


def test_consecutive_samples_are_mixed_like_independent_draws():
    source, _ = SampleOrder({"a": 9, "b": 9}, {"a": 1.0, "b": 1.0}, 3).samples(0, 64 * 1000)
    of_a = (source.reshape(1000, 64) == 0).sum(1)
    assert of_a.var() == pytest.approx(64 / 4, rel=0.25)


def test_sources_are_numbered_by_name_whatever_the_order_in_the_config():
    one = SampleOrder({"x": 50, "b": 70}, {"x": 1.0, "b": 2.0}, 9)
    two = SampleOrder({"b": 70, "x": 50}, {"b": 20.0, "x": 10.0}, 9)
    assert one.names == two.names == ["b", "x"]
    for mine, theirs in zip(one.samples(0, 5000), two.samples(0, 5000), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_order_is_frozen():
    """A change of these numbers breaks resuming: raise ORDER_VERSION with it."""
    source, window = SampleOrder({"a": 1000, "b": 77}, {"a": 2.0, "b": 1.0}, 42).samples(100_000, 100_010)
    assert source.tolist() == FROZEN[0]
    assert window.tolist() == FROZEN[1]


FROZEN: tuple[list[int], list[int]] = ([0, 1, 0, 1, 1, 0, 0, 0, 0, 1], [313, 38, 772, 7, 74, 691, 788, 126, 404, 2])


def test_a_late_start_is_as_fast_as_an_early_one():
    began = time.perf_counter()
    SampleOrder({"a": 1000, "b": 100_000}, {"a": 1.0, "b": 1.0}, 0).samples(10**12, 10**12 + 512)
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize(
    ("windows", "weights"), [({}, {}), ({"a": 1}, {"b": 1.0}), ({"a": 0}, {"a": 1.0}), ({"a": 1}, {"a": 0.0})]
)
def test_nonsense_is_refused(windows, weights):
    with pytest.raises(ValueError, match="source"):
        SampleOrder(windows, weights, 0)
