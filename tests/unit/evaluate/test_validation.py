"""Validation against probabilities of single tokens in float64; the same however divided; health beside it."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from tests.unit.data.synthetic import documents, write_source
from topklm.data import DataConfig, Windows, open_data, open_held_out
from topklm.data.tokenizers import ByteTokenizer
from topklm.errors import DataError
from topklm.evaluate import ValidationConfig, validate, validate_checkpoint, validation
from topklm.evaluate.validation import health_windows, n_validation_batches, ratio_stderr
from topklm.model import ModelConfig, build_model
from topklm.sparsity import TopKConfig, set_alpha

CPU = torch.device("cpu")
BOS, EOS, V = 256, 257, 258


def marked(n_tokens, first):
    """Documents of bytes with BOS and EOS."""
    return [[BOS, *(ids * 7 % 256), EOS] for ids in documents(n_tokens, first)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, n_val in (("a", 61), ("b", 22)):
        write_source(
            root, name, marked(100, 0), marked(n_val, 5), tokenizer=ByteTokenizer(), add_bos=True,
            n_bytes=lambda ids: len(ids) - 2,
        )  # fmt: skip
    return open_data(DataConfig(root_dir=str(root), sources={"a": 1.0, "b": 1.0}, seq_len=8))


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(dim=16, n_layers=3, n_heads=2, vocab_size=V, max_seqlen=8)
    model = build_model(config, TopKConfig(k=4, n_dense_tail=1)).double()
    set_alpha(model, 0.0)
    return model


@torch.no_grad()
def by_hand(model, held_out, name, windows):
    """(document, -ln p, token) of every scored token of a source, each from a pass of its own over what precedes it."""
    array = held_out.arrays[name]
    offsets = held_out.offsets[name].tolist()
    bounds = list(itertools.pairwise(offsets)) if windows.documents else [(0, len(array))]
    found = []
    for begin, end in bounds:
        text = array.read(begin, end).astype("int64").tolist()
        for t in range(1, len(text)):
            # The window that scores token t: the first, or the first of those beyond it that reach t.
            windows_on = max(0, -(-(t - windows.context) // windows.step))
            inputs = text[windows_on * windows.step : t]
            log_p = model(torch.tensor([inputs]))[0, -1].log_softmax(-1)
            document = max(d for d, o in enumerate(offsets[:-1]) if o <= begin + t)
            found.append((document, -log_p[text[t]].item(), text[t]))
    return found


@pytest.mark.parametrize(
    "windows",
    [
        Windows(context=5),
        Windows(context=8, stride=3),
        Windows(context=8, documents=True),
        Windows(context=4, stride=1, documents=True),
        Windows(context=200),
    ],
    ids=lambda w: w.view,
)
def test_figures_are_those_of_each_token_by_hand(data, model, windows):
    tokens = {name: by_hand(model, data.held_out, name, windows) for name in "ab"}
    found = validate(model, data.held_out, [windows], batch_size=3, device=CPU)
    figures, view = found.figures, windows.view
    for prefix, parts in (("val", tokens["a"] + tokens["b"]), ("val/a", tokens["a"]), ("val/b", tokens["b"])):
        loss = sum(nats for _, nats, _ in parts) / len(parts)
        text = [nats for _, nats, token in parts if token < 256]  # a byte each
        assert figures[f"{prefix}/tokens@{view}"] == len(parts)
        assert figures[f"{prefix}/loss@{view}"] == pytest.approx(loss, rel=1e-9)
        assert figures[f"{prefix}/ppl@{view}"] == pytest.approx(math.exp(loss), rel=1e-9)
        assert figures[f"{prefix}/bpb@{view}"] == pytest.approx(sum(text) / math.log(2) / len(text), rel=1e-9)
    lines = list(found.logs()[view])
    for line in lines:
        mine = [(nats, t) for d, nats, t in tokens[line["source"]] if d == line["document"]]
        assert line["tokens"] == len(mine)
        assert line["bytes"] == sum(t < 256 for _, t in mine)
        assert line["nats"] == pytest.approx(sum(nats for nats, _ in mine), rel=1e-9)
        assert line["text_nats"] == pytest.approx(sum(nats for nats, t in mine if t < 256), rel=1e-9)
    assert sum(line["tokens"] for line in lines) == len(tokens["a"] + tokens["b"])
    json.dumps(found.content())


@pytest.mark.parametrize("batch_size", [1, 100])
@pytest.mark.parametrize("windows", [Windows(context=8, stride=2), Windows(context=6, max_tokens=40, documents=True)])
def test_the_batch_size_changes_nothing(data, model, windows, batch_size):
    whole = validate(model, data.held_out, [windows], batch_size=3, device=CPU).figures
    assert validate(model, data.held_out, [windows], batch_size=batch_size, device=CPU).figures == pytest.approx(
        whole, rel=1e-12
    )


def test_more_context_is_another_figure_and_strides_give_more_of_it(data, model):
    views = [Windows(context=4), Windows(context=8), Windows(context=8, stride=1)]
    figures = validate(model, data.held_out, views, batch_size=8, device=CPU).figures
    losses = [figures[f"val/loss@{view}"] for view in ("4", "8", "8-stride1")]
    assert len(set(losses)) == 3
    assert figures["val/tokens@8"] == figures["val/tokens@8-stride1"]


def test_bytes_are_the_documents_own_where_a_tokenizer_loses_some(tmp_path, model):
    """Here the documents had twice the bytes that their tokens stand for."""
    write_source(tmp_path, "a", marked(40, 0), marked(50, 5), tokenizer=ByteTokenizer(), add_bos=True,
                 n_bytes=lambda ids: 2 * (len(ids) - 2))  # fmt: skip
    held_out = open_held_out(tmp_path)
    assert held_out.bytes_scale == {"a": 2.0}
    windows = Windows(context=8)
    tokens = by_hand(model, held_out, "a", windows)
    text = [nats for _, nats, token in tokens if token < 256]
    found = validate(model, held_out, [windows], batch_size=8, device=CPU)
    assert found.figures["val/bpb@8"] == pytest.approx(sum(text) / math.log(2) / (2 * len(text)), rel=1e-9)
    assert sum(line["bytes"] for line in found.logs()["8"]) == 2 * len(text)


def test_standard_errors_are_those_of_a_ratio_over_documents(data, model):
    found = validate(model, data.held_out, [Windows(context=8)], batch_size=8, device=CPU)
    lines = list(found.logs()["8"])
    row = found.tables()["8"]["*"]
    nats, tokens = ([line[key] for line in lines] for key in ("nats", "tokens"))
    n, mean = len(lines), sum(nats) / sum(tokens)
    residuals = sum((a - mean * b) ** 2 for a, b in zip(nats, tokens, strict=True))
    assert row["documents"] == n
    assert row["loss_stderr"] == pytest.approx(math.sqrt(n / (n - 1) * residuals) / sum(tokens), rel=1e-9)
    assert row["ppl_stderr"] == pytest.approx(row["ppl"] * row["loss_stderr"])


def test_one_document_has_no_standard_error(tmp_path, model):
    write_source(tmp_path, "a", marked(40, 0), [[BOS, 1, 2, 3, EOS]], tokenizer=ByteTokenizer(), add_bos=True)
    found = validate(model, open_held_out(tmp_path), [Windows(context=8)], batch_size=1, device=CPU)
    assert math.isnan(found.tables()["8"]["*"]["ppl_stderr"])
    assert found.content()["views"]["8"]["sources"]["*"]["ppl_stderr"] is None
    json.dumps(found.content(), allow_nan=False)


def test_the_standard_error_of_a_ratio_is_the_spread_over_samples():
    """Of many samples of documents, the ratio's own standard deviation."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 40, size=(3000, 60))
    sums = sizes * rng.normal(3.0, 0.5, size=sizes.shape)
    ratios = sums.sum(1) / sizes.sum(1)
    estimates = [ratio_stderr(a, b) for a, b in zip(sums, sizes, strict=True)]
    assert np.mean(estimates) == pytest.approx(ratios.std(), rel=0.05)
    # Documents of one length: the ordinary standard error of a mean.
    equal = ratio_stderr(sums[0] / sizes[0], np.ones(60))
    assert equal == pytest.approx((sums[0] / sizes[0]).std(ddof=1) / math.sqrt(60))
    assert math.isnan(ratio_stderr(np.ones(1), np.ones(1)))


def test_health_counts_scored_tokens_only_and_leaves_no_trace(data, model):
    tokens = torch.arange(8)[None]
    before = model.train()(tokens)
    figures = validate(model, data.held_out, [Windows(context=8)], batch_size=4, device=CPU).figures
    assert figures["topk/tokens"] == figures["val/tokens@8"] == sum(len(a) - 1 for a in data.val.values())
    assert figures["topk/l0_max"] <= 4
    assert figures["val/alpha"] == 0.0
    assert model.training
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_health_is_over_the_same_tokens_of_all_sources_for_any_batch_size(data, model, monkeypatch, batch_size):
    monkeypatch.setattr(validation, "HEALTH_TOKENS", 24)
    windows = [Windows(context=4, stride=2)]
    whole = validate(model, data.held_out, windows, batch_size=7, device=CPU).figures
    health = {k: v for k, v in whole.items() if k.startswith("topk/")}
    n_a, n_b = (len(array) - 1 for array in data.val.values())
    assert health["topk/tokens"] == 4 * (24 * n_a // (n_a + n_b) // 4 + 24 * n_b // (n_a + n_b) // 4)
    again = validate(model, data.held_out, windows, batch_size=batch_size, device=CPU).figures
    assert {k: v for k, v in again.items() if k.startswith("topk/")} == pytest.approx(health, rel=1e-9)


def test_a_dense_model_has_no_health_and_a_budget_is_kept(data):
    dense = build_model(ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=V), None)
    figures = validate(dense, data.held_out, [Windows(context=8, max_tokens=30)], batch_size=4, device=CPU).figures
    assert not [key for key in figures if key.startswith("topk/")]
    assert figures["val/tokens@8"] in (16, 24)  # whole windows of both sources within the budget


def test_progress_counts_every_batch(data, model):
    windows, seen = [Windows(context=8), Windows(context=4, stride=2)], []
    expected = n_validation_batches(model, data.held_out, windows, batch_size=3, world_size=1)
    validate(model, data.held_out, windows, batch_size=3, device=CPU, on_batch=lambda: seen.append(1))
    assert len(seen) == expected
    assert health_windows(windows[1]).step == 4


def test_a_checkpoint_is_validated_on_prepared_text_of_its_own_tokenizer_only(data, model, tmp_path):
    settings = ValidationConfig(contexts=[8], stride=4)
    root = data.config.root_dir
    common = {"settings": settings, "context": 4, "batch_size": 4, "device": CPU}
    found = validate_checkpoint(model, ByteTokenizer(), root, **common)
    assert {"val/ppl@8-stride4", "val/a/ppl@8-stride4"} <= found.figures.keys()
    one = validate_checkpoint(model, ByteTokenizer(), root, ["b"], **common)
    assert one.figures["val/ppl@8-stride4"] == pytest.approx(found.figures["val/b/ppl@8-stride4"], rel=1e-12)
    write_source(tmp_path, "other", marked(40, 0), marked(50, 5))
    with pytest.raises(DataError, match="with the checkpoint's tokenizer"):
        validate_checkpoint(model, ByteTokenizer(), tmp_path, **common)


def test_without_held_out_tokens_there_is_nothing_to_validate(tmp_path, model):
    write_source(tmp_path, "a", marked(100, 0))
    with pytest.raises(DataError, match="val_fraction"):
        open_held_out(tmp_path)
    data = open_data(DataConfig(root_dir=str(tmp_path), sources={"a": 1.0}, seq_len=8))
    with pytest.raises(DataError, match="val_fraction"):
        validate(model, data.held_out, [Windows(context=8)], batch_size=4, device=CPU)
