"""Health figures against direct counts, and that recording leaves no trace."""

from __future__ import annotations

import pytest
import tiny_stack as tiny
import torch
from torch._dynamo.utils import counters

from topklm.errors import ConfigError
from topklm.sparsity import TopKConfig, record_health, set_alpha

CFG = TopKConfig(k=6, n_dense_tail=2)
BATCHES = [tiny.make_batch(step)[:, :-1] for step in range(2)]


def pre_activations(model: tiny.Stack, tokens: torch.Tensor) -> list[torch.Tensor]:
    """What enters A in each sparse block at alpha = 0, [B, T, D], through the plain blocks' own code."""
    out, x = [], model.tok_embeddings(tokens)
    for block in model.layers[:3]:
        h = x + block.attention(block.attention_norm(x))
        pre = h + block.feed_forward(block.ffn_norm(h))
        out.append(pre)
        x = block(x)
    return out


@torch.no_grad()
def expected(model: tiny.Stack, keep: list[torch.Tensor], layer: int) -> dict[str, float]:
    pre = torch.cat([pre_activations(model, b)[layer][m] for b, m in zip(BATCHES, keep, strict=True)])  # [N, D]
    values, index = pre.sort(dim=-1, descending=True, stable=True)
    active = torch.zeros_like(pre, dtype=torch.bool).scatter(-1, index[:, :6], True) & (pre > 0)
    l0, margin = active.sum(-1).double(), (values[:, 5] - values[:, 6]).double()
    return {
        "l0_min": l0.min().item(),
        "l0_mean": l0.mean().item(),
        "l0_max": l0.max().item(),
        "dead": (~active.any(0)).double().mean().item(),
        "margin": margin.mean().item(),
        "margin_min": margin.min().item(),
    }


@pytest.mark.parametrize("masked", [False, True])
def test_against_direct_counts(masked: bool) -> None:
    model = tiny.make_stack(CFG)
    with torch.no_grad():  # so that rows with fewer than k positive entries and dead neurons occur
        model.layers[0].feed_forward[2].bias -= 1.4
    keep = [(batch % 3 != 0) if masked else torch.ones_like(batch, dtype=torch.bool) for batch in BATCHES]
    with record_health(model) as health, torch.no_grad():
        for batch, mask in zip(BATCHES, keep, strict=True):
            health.count_only(mask if masked else None)
            model(batch)
    summary = health.summary()
    figures = [expected(model, keep, layer) for layer in range(3)]
    for layer, figure in enumerate(figures):
        for name, value in figure.items():
            assert summary[f"topk/layer_{layer:02d}/{name}"] == pytest.approx(value, abs=1e-6), name
    assert figures[0]["l0_min"] < 6
    assert figures[0]["dead"] > 0
    assert summary["topk/l0_min"] == min(f["l0_min"] for f in figures)
    assert summary["topk/l0_max"] == 6
    assert summary["topk/l0_mean"] == pytest.approx(sum(f["l0_mean"] for f in figures) / 3)
    assert summary["topk/dead"] == pytest.approx(sum(f["dead"] for f in figures) / 3)
    assert summary["topk/margin_min"] == pytest.approx(min(f["margin_min"] for f in figures), abs=1e-6)
    assert summary["topk/tokens"] == sum(mask.sum().item() for mask in keep)
    assert summary["topk/alpha"] == 0
    assert {t.dtype for t in health.fired().values()} == {torch.int64}


def test_no_trace_afterwards() -> None:
    model = tiny.make_stack(CFG)
    set_alpha(model, 0.5)
    before, keys = model(BATCHES[0]), list(model.state_dict())
    with pytest.raises(IndexError), record_health(model) as health:
        model(BATCHES[0])[99]  # fails inside
    tokens = health.summary()["topk/tokens"]
    assert torch.equal(model(BATCHES[0]), before)
    assert list(model.state_dict()) == keys
    assert health.summary()["topk/tokens"] == tokens == BATCHES[0].numel()
    assert health.summary()["topk/alpha"] == 0.5
    with record_health(model), pytest.raises(ConfigError, match="already"), record_health(model):
        pass
    with record_health(model):
        pass


def test_k_equal_to_dim_has_no_margin_and_nothing_recorded_is_empty() -> None:
    model = tiny.make_stack(TopKConfig(k=tiny.DIM))
    with record_health(model) as health:
        assert health.summary() == {}
        model(BATCHES[0])
    summary = health.summary()
    assert summary["topk/margin"] != summary["topk/margin"]
    assert summary["topk/l0_max"] < tiny.DIM
    dense = tiny.make_stack(None)
    with record_health(dense) as health:
        dense(BATCHES[0])
    assert health.summary() == {}


@pytest.mark.parametrize("how", ["forward", "inplace"])
def test_compiled_blocks_are_recorded_eagerly(how: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    plain, model = tiny.make_stack(CFG), tiny.make_stack(CFG)
    tiny.checkpoint_blocks(model, "full")
    tiny.compile_blocks(model, how, backend="aot_eager")
    for _ in range(2):
        tiny.loss_of(model, tiny.make_batch(0)).backward()
        graphs = counters["stats"]["unique_graphs"]
        with record_health(model) as health:
            tiny.loss_of(model, tiny.make_batch(0)).backward()  # the recomputation counts nothing
        with record_health(plain) as reference:
            tiny.loss_of(plain, tiny.make_batch(0))
        assert health.summary() == reference.summary()
        assert graphs == 2
    torch._dynamo.reset()
