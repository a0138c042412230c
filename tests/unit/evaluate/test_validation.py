"""Validation against sums made token by token; independent of batch size; per source; health beside it."""

import math

import pytest
import torch

from tests.unit.data.synthetic import documents, write_source
from topklm.data import DataConfig, open_data
from topklm.errors import DataError
from topklm.evaluate import validate, validation
from topklm.model import ModelConfig, build_model
from topklm.sparsity import TopKConfig, set_alpha

CPU = torch.device("cpu")
V = 50


@pytest.fixture
def data(tmp_path):
    for name, n_val in (("a", 61), ("b", 22)):
        tokens = [ids % V for ids in documents(100)]
        write_source(tmp_path, name, tokens, [(ids * 7 + 3) % V for ids in documents(n_val, 5)])
    return open_data(DataConfig(root_dir=str(tmp_path), sources={"a": 1.0, "b": 1.0}, seq_len=8))


@pytest.fixture
def model():
    config = ModelConfig(dim=16, n_layers=3, n_heads=2, vocab_size=V, max_seqlen=8)
    model = build_model(config, TopKConfig(k=4, n_dense_tail=1)).double()
    set_alpha(model, 0.0)
    return model


def loss_by_hand(model, tokens, context):
    """Sum of -ln p over windows of `context` inputs that do not overlap, and the number of targets."""
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, context):
        window = torch.tensor(tokens[start : start + context + 1].astype("int64"))
        log_p = model(window[None, :-1])[0].log_softmax(-1)
        total -= sum(log_p[t, target].item() for t, target in enumerate(window[1:]))
        count += len(window) - 1
    return total, count


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_losses_are_the_sums_by_hand_for_any_batch_size(data, model, batch_size):
    figures = validate(model, data, contexts=[5, 8], batch_size=batch_size, device=CPU)
    for context in (5, 8):
        sums = {name: loss_by_hand(model, data.val[name].read(0, len(data.val[name])), context) for name in "ab"}
        for name, (total, count) in sums.items():
            assert figures[f"val/{name}/loss@{context}"] == pytest.approx(total / count, abs=1e-6)
            assert figures[f"val/{name}/tokens@{context}"] == count
        mean = sum(t for t, _ in sums.values()) / sum(n for _, n in sums.values())
        assert figures[f"val/loss@{context}"] == pytest.approx(mean, abs=1e-6)
        assert figures[f"val/ppl@{context}"] == pytest.approx(math.exp(mean), rel=1e-6)


def test_health_counts_scored_tokens_only_and_leaves_no_trace(data, model):
    tokens = torch.arange(8)[None]
    before = model.train()(tokens)
    figures = validate(model, data, contexts=[8], batch_size=4, device=CPU)
    assert figures["topk/tokens"] == figures["val/tokens@8"] == 60 + 21
    assert figures["topk/l0_max"] <= 4
    assert figures["val/alpha"] == 0.0
    assert model.training
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_health_is_over_the_same_tokens_of_all_sources_for_any_batch_size(data, model, monkeypatch, batch_size):
    monkeypatch.setattr(validation, "HEALTH_TOKENS", 24)
    whole = validate(model, data, contexts=[4], batch_size=7, device=CPU)
    health = {k: v for k, v in whole.items() if k.startswith("topk/")}
    assert health["topk/tokens"] == 4 * (24 * 60 // 81 // 4 + 24 * 21 // 81 // 4)  # both sources
    assert whole["val/tokens@4"] == 81
    again = validate(model, data, contexts=[4], batch_size=batch_size, device=CPU)
    assert {k: v for k, v in again.items() if k.startswith("topk/")} == pytest.approx(health, rel=1e-9)


def test_a_dense_model_has_no_health(data):
    dense = build_model(ModelConfig(dim=16, n_layers=1, n_heads=2, vocab_size=V), None)
    figures = validate(dense, data, contexts=[8], batch_size=4, device=CPU, max_tokens=20)
    assert not [key for key in figures if key.startswith("topk/")]
    assert figures["val/tokens@8"] == 16  # whole windows within the budget


def test_without_held_out_tokens_there_is_nothing_to_validate(tmp_path, model):
    write_source(tmp_path, "a", [ids % V for ids in documents(100)])
    data = open_data(DataConfig(root_dir=str(tmp_path), sources={"a": 1.0}, seq_len=8))
    with pytest.raises(DataError, match="val_fraction"):
        validate(model, data, contexts=[8], batch_size=4, device=CPU)
