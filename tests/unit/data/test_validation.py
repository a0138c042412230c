import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.data import DataConfig, TrainData, Windows, n_batches, n_scored_tokens, open_data, validation_batches
from topklm.data.loader import IGNORE
from topklm.errors import ConfigError, DataError

from .synthetic import documents, two_sources, write_source

N = {"a": 100, "b": 29, "c_without_val": 0, "d_one_token": 0}
"""Targets by source where each is one text."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TrainData:
    root = tmp_path_factory.mktemp("prepared")
    two_sources(root)
    write_source(root, "c_without_val", documents(50, 40_000))
    write_source(root, "d_one_token", documents(50, 41_000), [[50_000]])
    return open_data(DataConfig(root_dir=str(root), sources=dict.fromkeys(N, 1.0), seq_len=8))


def rows(data, windows, **division):
    """(source, start, inputs, targets) of each window, in order, gathered from all ranks; shapes of the batches."""
    world, batch_size = division.get("world", 1), division.get("batch_size", 3)
    found, shapes = {}, []
    for rank in range(world):
        batches = list(
            validation_batches(data.held_out, windows, batch_size=batch_size, rank=rank, world_size=world)
        )  # fmt: skip
        shapes.append([tuple(b.tokens.shape) for b in batches])
        assert len(batches) == n_batches(data.held_out, windows, batch_size=batch_size, world_size=world)
        flat = [
            row
            for b in batches
            for row in zip(b.source.tolist(), b.start.tolist(), b.tokens.tolist(), b.targets.tolist(), strict=True)
        ]
        for number, row in enumerate(flat):
            assert (row[0] >= 0) == any(target != IGNORE for target in row[3])
            if row[0] >= 0:
                found[rank + number * world] = row
    assert sorted(found) == list(range(len(found)))
    return [found[i] for i in sorted(found)], shapes


any_windows = st.builds(
    lambda context, stride, documents, max_tokens: Windows(
        context=context, stride=stride and min(stride, context), documents=documents, max_tokens=max_tokens
    ),
    st.integers(1, 120), st.none() | st.integers(1, 120), st.booleans(), st.none() | st.integers(1, 200),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(windows=any_windows, batch_size=st.integers(1, 9), world=st.integers(1, 5))
def test_every_token_is_scored_once_in_its_context_whatever_the_division(data, windows, batch_size, world):
    found, shapes = rows(data, windows, batch_size=batch_size, world=world)
    assert len({tuple(s) for s in shapes}) == 1
    assert len(set(shapes[0])) == 1
    assert shapes[0][0][0] <= batch_size
    assert found == rows(data, windows)[0]

    names = list(N)
    scored: dict[str, list[int]] = {name: [] for name in N}
    for source, start, tokens, targets in found:
        array, offsets = data.val[names[source]], data.held_out.offsets[names[source]]
        last = max(t for t, target in enumerate(targets) if target != IGNORE)
        first = next(t for t, target in enumerate(targets) if target != IGNORE)
        text = array.read(start, start + last + 2).tolist()
        assert tokens[: last + 1] == text[:-1]
        assert targets[first : last + 1] == text[first + 1 :]  # without a hole
        positions = range(start + first + 1, start + last + 2)
        scored[names[source]] += positions
        # What a token is predicted from: enough, or all there is before it in its text.
        begin = int(offsets[offsets <= start][-1]) if windows.documents else 0
        assert start >= begin
        assert first + 1 >= min(windows.context - windows.step + 1, positions[0] - begin)
        if windows.documents:
            assert positions[-1] < offsets[offsets > start][0]
    expected = n_scored_tokens(data.held_out, windows)
    for name, positions in scored.items():
        assert len(set(positions)) == len(positions) == expected[name]
        begins = set(data.held_out.offsets[name].tolist()) if windows.documents else {0}
        targets = [p for p in range(len(data.val[name])) if p not in begins]
        assert set(positions) <= set(targets)
        if windows.max_tokens is None or windows.max_tokens >= 129:
            assert sorted(positions) == targets


@given(context=st.integers(1, 30), max_tokens=st.integers(1, 140))
def test_the_budget_is_kept_in_whole_windows_of_each_source(data, context, max_tokens):
    scored = n_scored_tokens(data.held_out, Windows(context=context, max_tokens=max_tokens))
    for name, n in N.items():
        if max_tokens >= 129:
            assert scored[name] == n
        else:
            share = max_tokens * n / 129
            assert scored[name] <= max(share, min(context, n))
            assert scored[name] > share - context or scored[name] == n // context * context


@given(windows=any_windows.filter(lambda w: w.max_tokens is not None))
def test_a_budget_is_about_kept_with_strides_and_by_documents(data, windows):
    scored = n_scored_tokens(data.held_out, windows)
    for name, n in N.items():
        share = windows.max_tokens * n / 129
        assert scored[name] <= max(2 * share, windows.context) + 14  # documents have up to 13 tokens


def test_a_few_windows_are_spread_over_the_whole_source(data):
    """A budget of a fifth must not mean the first fifth of the documents."""
    found, _ = rows(data, Windows(context=2, max_tokens=26))
    assert [tokens[0] for source, _, tokens, _ in found if source == 0] == [20_000 + 10 * i for i in range(10)]
    by_document, _ = rows(data, Windows(context=2, documents=True, max_tokens=40))
    starts = [start for source, start, _, _ in by_document if source == 0]
    assert max(starts) > 60
    assert max(b - a for a, b in itertools.pairwise(starts)) < 30


def test_strides_and_documents_by_hand(data):
    """A text of 10 tokens in windows of 4, each scoring 2 more; and documents of 3, 1 and 6 tokens."""
    assert [(s, t) for _, s, _, t in rows(data, Windows(context=60, stride=30))[0]][:3] == [
        (0, list(range(20_001, 20_061))),
        (30, [IGNORE] * 30 + list(range(20_061, 20_091))),
        (60, [IGNORE] * 30 + list(range(20_091, 20_101)) + [IGNORE] * 20),
    ]
    offsets = data.held_out.offsets["a"].tolist()
    begin, end = next((b, e) for b, e in itertools.pairwise(offsets) if e - b > 6)
    mine = [r for r in rows(data, Windows(context=4, stride=2, documents=True))[0] if r[0] == 0 and begin <= r[1] < end]
    assert mine[0][1:] == (
        begin,
        list(range(20_000 + begin, 20_004 + begin)),
        list(range(20_001 + begin, 20_005 + begin)),
    )
    assert mine[1][1] == begin + 2
    assert mine[1][3][:3] == [IGNORE, IGNORE, 20_005 + begin]


def test_all_is_scored_without_a_budget(data):
    assert n_scored_tokens(data.held_out, Windows(context=7)) == N
    by_document = n_scored_tokens(data.held_out, Windows(context=7, documents=True))
    assert by_document["a"] == 101 - data.val["a"].n_documents


def test_document_ids(data):
    held_out = data.held_out
    (batch,) = validation_batches(held_out, Windows(context=200), batch_size=8, with_document_ids=True)
    assert batch.document_ids is not None
    assert batch.document_ids[0, :100].tolist() == data.val["a"].document_ids(0, 100).tolist()
    assert batch.document_ids[1, :29].tolist() == data.val["b"].document_ids(0, 29).tolist()
    (plain,) = validation_batches(held_out, Windows(context=200), batch_size=8)
    assert plain.document_ids is None


def test_moving_keeps_where_rows_come_from(data):
    (batch,) = validation_batches(data.held_out, Windows(context=200), batch_size=8)
    moved = batch.to("meta")
    assert moved.tokens.device.type == moved.targets.device.type == "meta"
    assert torch.equal(moved.source, batch.source)
    assert batch.source.tolist() == [0, 1]
    assert moved.start.tolist() == [0, 0]


def test_no_held_out_tokens_is_an_error_at_the_call(tmp_path):
    write_source(tmp_path, "s", documents(50))
    data = open_data(DataConfig(root_dir=str(tmp_path), sources={"s": 1.0}, seq_len=8))
    with pytest.raises(DataError, match="val_fraction"):
        validation_batches(data.held_out, Windows(context=8), batch_size=2)


@pytest.mark.parametrize(
    "sizes", [{"context": 0}, {"context": 4, "max_tokens": 0}, {"context": 4, "stride": 0}, {"context": 4, "stride": 5}]
)
def test_nonsense_windows_are_refused(sizes):
    with pytest.raises(ConfigError):
        Windows(**sizes)


@pytest.mark.parametrize("change", [{"rank": 2}, {"batch_size": 0}])
def test_nonsense_divisions_are_refused(data, change):
    with pytest.raises(ValueError, match="at least 1"):
        validation_batches(data.held_out, Windows(context=4), **{"batch_size": 2, "rank": 0, "world_size": 2, **change})


def test_names_of_views():
    assert Windows(context=256).view == Windows(context=256, stride=256).view == "256"
    assert Windows(context=256, stride=64).view == "256-stride64"
    assert Windows(context=256, stride=64, documents=True).view == "256-stride64-documents"
