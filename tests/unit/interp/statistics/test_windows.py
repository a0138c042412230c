"""Which windows are read: whole, disjoint, evenly spread; snapshots grow, halves are even."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.synthetic import documents, write_source
from topklm.bundles import Settings
from topklm.config import load_config
from topklm.errors import ConfigError, DataError
from topklm.interp import CollectConfig, ReadTopK
from topklm.interp.statistics.collect_config import token_count
from topklm.interp.statistics.layer_plan import group_layers, layer_bytes, plan_layers
from topklm.interp.statistics.windows import plan_windows
from topklm.sparsity import TopKConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_source(root, "a", documents(400), documents(1001, 1000))
    write_source(root, "b", documents(90, 3000), documents(203, 5000))
    return root


def plan(root, **changes):
    usual = {"sources": [], "split": "val", "context": 10, "tokens": 10**9, "snapshots": None, "halves": True}
    return plan_windows(root, **(usual | changes))


def all_windows(planned):
    return np.sort(np.concatenate([part.windows for part in planned.parts]))


def test_positions_count_through_the_parts_of_the_corpus(root):
    planned = plan(root, split="all")
    assert [(p.source, p.split, p.n_tokens) for p in planned.corpus.parts] == [
        ("a", "train", 400), ("a", "val", 1001), ("b", "train", 90), ("b", "val", 203),
    ]  # fmt: skip
    windows = all_windows(planned)
    text = np.concatenate([np.concatenate(d) for d in (documents(400), documents(1001, 1000), documents(90, 3000),
                                                       documents(203, 5000))])  # fmt: skip
    assert np.array_equal(planned.read(windows), text[windows[:, None] + np.arange(10)])
    assert planned.n_tokens == 400 + 1000 + 90 + 200
    assert planned.n_left_out == 1 + 3
    ids = planned.document_ids(windows)
    lengths = [len(d) for d in documents(400)]
    assert np.array_equal(ids[:40].ravel(), np.repeat(np.arange(len(lengths)), lengths))
    counts = planned.counts(windows, 6000)
    assert counts.sum() == planned.n_tokens
    assert np.array_equal(np.flatnonzero(counts[:400]), np.arange(400))


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 1400), context=st.integers(1, 60),
    snapshots=st.none() | st.lists(st.integers(1, 1500), max_size=3), halves=st.booleans(),
)  # fmt: skip
def test_any_plan_is_disjoint_whole_and_spread(root, tokens, context, snapshots, halves):
    planned = plan(root, tokens=tokens, context=context, snapshots=snapshots, halves=halves)
    windows = all_windows(planned)
    assert (np.diff(windows) >= context).all()
    assert planned.n_tokens == len(windows) * context
    wholes = np.array([1001 // context, 203 // context])
    assert planned.n_tokens <= max(tokens, 2 * context)  # at least one window of each source
    per_source = np.array([(windows < 1001).sum(), (windows >= 1001).sum()])
    assert (per_source <= wholes).all()
    assert (per_source >= 1).all()
    for first, used, whole in zip((0, 1001), per_source, wholes, strict=True):
        starts = windows[(windows >= first) & (windows < first + 1001)] - first
        assert (starts % context == 0).all()
        gaps = np.diff(starts) // context
        if len(gaps):
            assert gaps.max() - gaps.min() <= 1
            assert gaps.max() <= -(-whole // used)
    sizes = np.cumsum([sum(len(p.windows) for p in planned.parts if p.snapshot == i)
                       for i in range(max(p.snapshot for p in planned.parts) + 1)])  # fmt: skip
    if snapshots is not None:
        wanted = sorted({-(-n // context) for n in snapshots if -(-n // context) < len(windows)})
        assert sizes.tolist() == [*wanted, len(windows)]
    if halves:
        for i in range(len(sizes)):
            a, b = (sum(len(p.windows) for p in planned.parts if p.half == h and p.snapshot <= i) for h in "ab")
            assert 0 <= a - b <= 1


def test_a_snapshot_is_spread_over_the_corpus(root):
    planned = plan(root, sources=["a"], context=1, snapshots=[250], halves=False)
    first = planned.parts[0].windows
    assert len(first) == 250
    assert (abs(np.bincount(first * 4 // 1001, minlength=4) - 62.5) < 5 * 62.5**0.5).all()


def test_what_cannot_be_planned_is_told(root, tmp_path):
    with pytest.raises(DataError, match=r"1,204 tokens of split=val, no source a whole window of 2000; use a smaller"):
        plan(root, context=2000)
    with pytest.raises(DataError, match="holds no prepared source"):
        plan(tmp_path)
    with pytest.raises(DataError, match="is not a prepared source"):
        plan(root, sources=["c"])
    write_source(tmp_path, "a", documents(50), documents(50))
    write_source(tmp_path, "b", documents(50), documents(50), sha256="u" * 64)
    with pytest.raises(DataError, match="different tokenizers"):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("text", "n"),
    [("10M", 10**7), ("500k", 500_000), ("2e6", 2 * 10**6), ("1.5B", 15 * 10**8), (7, 7), ("100_000", 100_000),
     ("0", 0), ("ten", None), ("-3", None), ("1M5", None), ("", None)],
)  # fmt: skip
def test_numbers_of_tokens_are_written_as_people_do(text, n):
    assert token_count(text) == n


def test_every_problem_of_a_configuration_is_told_at_once():
    config = CollectConfig(
        ckpts="some", tokens="ten", snapshots=["0"], context=0, alpha=2.0, near_miss=1.0, layers=[], top_contexts=0,
        memory_gb=0.0, save_minutes=-1.0, read_topk=ReadTopK(k=3), site="pre",
    )  # fmt: skip
    keys = [problem.key for problem in config.problems()]
    assert keys == ["ckpt", "ckpts", "tokens", "snapshots", "context", "top_contexts", "alpha", "near_miss", "layers",
                    "site", "memory_gb", "save_minutes"]  # fmt: skip
    assert list(CollectConfig(ckpt="x").problems()) == []


def test_how_layers_are_read():
    sparse = TopKConfig(k=4, n_dense_tail=1)
    kinds = [(p.kind, p.selects, p.signed) for p in plan_layers(3, sparse, 0.0, "post", None)]
    assert kinds == [("topk", True, False), ("topk", True, False), ("dense", False, True)]
    for alpha, site in ((0.5, "post"), (0.0, "pre")):
        kinds = [(p.kind, p.selects, p.signed) for p in plan_layers(3, sparse, alpha, site, None)]
        assert kinds == [("dense", True, True), ("dense", True, True), ("dense", False, True)]
    signed = TopKConfig(k=4, n_dense_tail=1, anneal_form="identity")
    assert [p.signed for p in plan_layers(3, signed, 0.0, "post", None)] == [True, True, True]
    cut = ReadTopK(k=4, n_dense_tail=1)
    assert [p.kind for p in plan_layers(3, None, None, "post", cut)] == ["topk", "topk", "dense"]
    assert [p.cut for p in plan_layers(3, None, None, "post", cut)] == [cut, cut, None]
    with pytest.raises(ConfigError, match="has TopK layers of its own"):
        plan_layers(3, sparse, 0.0, "post", cut)
    with pytest.raises(ConfigError, match="4 is more than the 3 layers"):
        plan_layers(3, None, None, "post", ReadTopK(k=4, n_dense_tail=4))


@given(st.integers(0, 3), st.integers(1, 40), st.booleans())
def test_groups_fit_and_hold_every_layer_once(tail, budget, positive):
    options = Settings(
        near_miss=0.1, top_contexts=4, sample_contexts=2, positive_part=positive, token_fired=False
    )  # fmt: skip
    plans = plan_layers(6, TopKConfig(k=4, n_dense_tail=tail), 0.0, "post", None)
    needs = [layer_bytes(plan, 16, 1000, options) for plan in plans]
    budget *= max(needs)
    if budget < 2 * max(needs):
        with pytest.raises(ConfigError, match="memory_gb"):
            group_layers(range(6), plans, 16, 1000, options, budget)
        return
    groups = group_layers(range(6), plans, 16, 1000, options, budget)
    assert [layer for group in groups for layer in group] == list(range(6))
    for group in groups:
        assert sum(needs[i] for i in group) + needs[group[-1]] <= budget


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[4] / "configs" / "collect").glob("*.yaml")), ids=lambda path: path.name
)
def test_shipped_configurations_load(path):
    assert token_count(load_config(CollectConfig, [f"config={path}", "ckpt=somewhere"]).tokens)
