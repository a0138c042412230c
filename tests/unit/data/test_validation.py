import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.data import DataConfig, TrainData, n_scored_tokens, open_data, validation_batches
from topklm.data.loader import IGNORE
from topklm.errors import DataError

from .synthetic import documents, two_sources, write_source


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TrainData:
    root = tmp_path_factory.mktemp("prepared")
    two_sources(root)
    write_source(root, "c_without_val", documents(50, 40_000))
    write_source(root, "d_one_token", documents(50, 41_000), [[50_000]])
    names = ["a", "b", "c_without_val", "d_one_token"]
    return open_data(DataConfig(root_dir=str(root), sources=dict.fromkeys(names, 1.0), seq_len=8))


@settings(max_examples=80, deadline=None)
@given(
    context=st.integers(1, 120),
    batch_size=st.integers(1, 9),
    world=st.integers(1, 5),
    max_tokens=st.none() | st.integers(1, 200),
)
def test_every_token_is_scored_once_in_its_context(data, context, batch_size, world, max_tokens):
    scored: dict[int, list[int]] = {}
    shapes, rows_in_order = [], {}
    for rank in range(world):
        batches = list(
            validation_batches(
                data, context=context, batch_size=batch_size, rank=rank, world_size=world, max_tokens=max_tokens
            )
        )
        shapes.append([tuple(b.tokens.shape) for b in batches])
        row_of_rank = 0
        for batch in batches:
            assert batch.tokens.shape == batch.targets.shape
            for tokens, targets, source in zip(
                batch.tokens.tolist(), batch.targets.tolist(), batch.source.tolist(), strict=True
            ):
                valid = [t for t in targets if t != IGNORE]
                assert targets == valid + [IGNORE] * (context - len(valid))  # padding at the end only
                assert bool(valid) == (source >= 0)
                if valid:
                    # tokens count upwards: each target follows its input, all inputs are there
                    assert tokens[: len(valid)] == [t - 1 for t in valid]
                    scored.setdefault(source, []).extend(valid)
                    rows_in_order[rank + row_of_rank * world] = valid[0]
                row_of_rank += 1
    assert len({tuple(s) for s in shapes}) == 1
    assert len(set(shapes[0])) == 1
    assert shapes[0][0][0] <= batch_size
    expected = n_scored_tokens(data, context, max_tokens)
    assert [len(scored.get(s, [])) for s in range(4)] == list(expected.values())
    for source, first, n in ((0, 20_000, 100), (1, 30_000, 29)):
        tokens = sorted(scored.get(source, []))
        assert len(set(tokens)) == len(tokens)
        assert set(tokens) <= set(range(first + 1, first + 1 + n))
        if max_tokens is None or max_tokens >= 129:
            assert len(tokens) == n
    in_order = [rows_in_order[i] for i in sorted(rows_in_order)]
    assert sorted(rows_in_order) == list(range(len(in_order)))
    assert in_order == sorted(in_order)


@given(context=st.integers(1, 30), max_tokens=st.integers(1, 140))
def test_the_budget_is_kept_in_whole_windows_of_each_source(data, context, max_tokens):
    scored = n_scored_tokens(data, context, max_tokens)
    for name, n in {"a": 100, "b": 29, "c_without_val": 0, "d_one_token": 0}.items():
        if max_tokens >= 129:
            assert scored[name] == n
        else:
            share = max_tokens * n / 129
            assert scored[name] <= max(share, min(context, n))
            assert scored[name] > share - context or scored[name] == n // context * context


def test_a_few_windows_are_spread_over_the_whole_source(data):
    """A budget of a fifth must not mean the first fifth of the documents."""
    batches = validation_batches(data, context=2, batch_size=100, max_tokens=26)
    starts = [row[0] for batch in batches for row, s in zip(batch.tokens.tolist(), batch.source, strict=True) if s == 0]
    assert starts == [20_000 + 10 * i for i in range(10)]


def test_all_is_scored_without_a_budget(data):
    assert n_scored_tokens(data, 7) == {"a": 100, "b": 29, "c_without_val": 0, "d_one_token": 0}


def test_document_ids(data):
    (batch,) = validation_batches(data, context=200, batch_size=8, with_document_ids=True)
    assert batch.document_ids is not None
    assert batch.document_ids[0, :100].tolist() == data.val["a"].document_ids(0, 100).tolist()
    assert batch.document_ids[1, :29].tolist() == data.val["b"].document_ids(0, 29).tolist()
    (plain,) = validation_batches(data, context=200, batch_size=8)
    assert plain.document_ids is None


def test_moving_keeps_the_source(data):
    (batch,) = validation_batches(data, context=200, batch_size=8)
    moved = batch.to("meta")
    assert moved.tokens.device.type == moved.targets.device.type == "meta"
    assert torch.equal(moved.source, batch.source)
    assert batch.source.tolist() == [0, 1]


def test_no_held_out_tokens_is_an_error_at_the_call(tmp_path):
    write_source(tmp_path, "s", documents(50))
    data = open_data(DataConfig(root_dir=str(tmp_path), sources={"s": 1.0}, seq_len=8))
    with pytest.raises(DataError, match="val_fraction"):
        validation_batches(data, context=8, batch_size=2)


@pytest.mark.parametrize("change", [{"context": 0}, {"batch_size": 0}, {"rank": 2}, {"max_tokens": 0}])
def test_nonsense_is_refused(data, change):
    with pytest.raises(ValueError, match="at least 1"):
        validation_batches(data, **{"context": 4, "batch_size": 2, "rank": 0, "world_size": 2, **change})
