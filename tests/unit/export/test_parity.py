"""A comparison passes for the same model, and fails for each way of not being it."""

from __future__ import annotations

import json
import math

import pytest
import torch

pytest.importorskip("transformers")

from tests.unit.export.models import TOPK, tiny_source
from topklm.errors import ParityError
from topklm.export.config import ParityConfig
from topklm.export.huggingface import huggingface_config
from topklm.export.modeling_topklm import TopKLlamaConfig, TopKLlamaForCausalLM
from topklm.export.parity import BOUNDS, compare
from topklm.export.sides import HuggingFaceSide, NativeSide
from topklm.model.huggingface import weights_to_hf
from topklm.sparsity import TopKConfig, set_alpha, sparsify

TOKENS = torch.randint(258, (3, 40), generator=torch.Generator().manual_seed(0))
BOTH = ParityConfig()


def side(source, **changes) -> HuggingFaceSide:
    """The model of `source` in transformers, without a directory."""
    config = huggingface_config(source)
    config = {**config, "topk": {**config["topk"], **changes}}
    model = TopKLlamaForCausalLM(TopKLlamaConfig(**config))
    weights = weights_to_hf(source.model.state_dict(), source.config.model)
    model.load_state_dict(weights, strict=not source.config.model.weight_tying)
    model.tie_weights()
    return HuggingFaceSide(model, source.config.model)


@pytest.mark.parametrize("form", ["blend", "identity", "relu"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_same_model_passes(form: str, alpha: float) -> None:
    source = tiny_source(TopKConfig(k=6, n_dense_tail=1, anneal_form=form, anneal_steps=10), alpha)
    parity = compare(NativeSide(source.model), side(source), TOKENS, BOTH)
    parity.demand()
    for result in parity.precisions:
        assert result.tokens == 120
        assert result.rows == 3 * 120
        assert [layer.layer for layer in result.layers] == [0, 1, 2]
        assert result.told_logit_max < (1e-4 if result.precision == "fp32" else 1e-12) * result.logit_std
        assert result.told_agreement == 1
        assert result.fresh_flips <= BOUNDS[result.precision].few
        assert result.agreement > 0.95
        assert result.loss_a == pytest.approx(result.told_loss_b, abs=1e-5)
        if alpha == 0:
            assert all(0 < layer.l0_mean <= layer.l0_max <= 6 for layer in result.layers)
    assert json.loads(json.dumps(parity.to_dict()))["passed"] is True


def test_figures_are_those_of_a_direct_computation() -> None:
    source = tiny_source()
    result = compare(NativeSide(source.model), side(source), TOKENS, ParityConfig(precisions=["fp32"])).precisions[0]
    other = side(source).model
    with torch.no_grad():
        a, b = source.model(TOKENS), other(TOKENS).logits
    assert result.logit_max == pytest.approx((a - b).abs().max().item(), rel=1e-3)
    assert result.logit_mean == pytest.approx((a.double() - b.double()).abs().mean().item(), rel=1e-2)
    assert result.logit_std == pytest.approx(a.std(correction=0).item(), rel=1e-5)
    assert result.agreement == (a.argmax(-1) == b.argmax(-1)).double().mean().item()
    loss = torch.nn.functional.cross_entropy(a[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    assert result.loss_a == pytest.approx(loss.item(), rel=1e-5)
    assert result.told_logit_max <= max(result.logit_max, 1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 29}, "selects 29 entries, not 28"),
        ({"alpha": 0.01}, "logits differ"),
        ({"n_dense_tail": 2}, "the first has 3 sparse blocks, the second 2"),
        ({"anneal_form": "identity"}, "logits differ"),
    ],
)
def test_another_activation_fails(changes, message: str) -> None:
    source = tiny_source(TopKConfig(k=28, n_dense_tail=1, anneal_steps=10))  # of 32: some of them are negative
    parity = compare(NativeSide(source.model), side(source, **changes), TOKENS, BOTH)
    with pytest.raises(ParityError, match=message):
        parity.demand()
    assert parity.to_dict()["passed"] is False


@pytest.mark.parametrize("name", ["model.layers.3.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_another_weight_fails(name: str) -> None:
    source, other = tiny_source(), side(tiny_source())
    with torch.no_grad():
        dict(other.model.named_parameters())[name][0] += 0.1
    assert any("logits differ" in p for p in compare(NativeSide(source.model), other, TOKENS, BOTH).problems)


def test_unpermuted_heads_fail() -> None:
    source = tiny_source()
    other = side(source)
    weights = {f"layers.{i}.attention.w{n}.weight": f"model.layers.{i}.self_attn.{n}_proj.weight"
               for i in range(4) for n in "qk"}  # fmt: skip
    with torch.no_grad():
        for ours, theirs in weights.items():
            other.model.state_dict()[theirs].copy_(source.model.state_dict()[ours])
    assert any("logits differ" in p for p in compare(NativeSide(source.model), other, TOKENS, BOTH).problems)


def test_a_nan_fails() -> None:
    source, other = tiny_source(), side(tiny_source())
    with torch.no_grad():
        other.model.lm_head.weight[5] = math.nan
    parity = compare(NativeSide(source.model), other, TOKENS, BOTH)
    problems = parity.problems
    assert any("logits differ by up to nan" in p for p in problems)
    assert "NaN" not in json.dumps(parity.to_dict())
    assert any("losses" in p for p in problems)


def test_another_rule_of_selection_fails(monkeypatch) -> None:
    # The second side would keep the smallest entries; told what to keep, its logits are right.
    from topklm.export import modeling_topklm

    right = modeling_topklm.select
    monkeypatch.setattr(modeling_topklm, "select", lambda x, k: right(-x, k))
    source = tiny_source()
    problems = compare(NativeSide(source.model), side(source), TOKENS, BOTH).problems
    assert any("another rule of selection" in p for p in problems)


def test_a_flip_is_counted_with_its_gap_and_harms_nothing() -> None:
    # The first block adds nothing, five entries are the largest by far, and a hair decides between 3 and 9.
    source, other, hair = tiny_source(), side(tiny_source()), 2.0**-16
    with torch.no_grad():
        for weight, sign in ((source.model.tok_embeddings.weight, 1), (other.model.model.embed_tokens.weight, -1)):
            weight[:, 10:15] = 50.0
            weight[:, 3] = 48.0
            weight[:, 9] = 48.0 + sign * hair
        for parameter in (*source.model.layers[0].parameters(), *other.model.model.layers[0].parameters()):
            parameter.zero_()
    result = compare(NativeSide(source.model), other, TOKENS, ParityConfig(precisions=["fp32"])).precisions[0]
    first = result.layers[0]
    assert (first.rows, first.flips, first.fresh_flips) == (120, 120, 120)
    assert (first.gap, first.gap_bound) == (hair, 4 * hair)
    assert result.listed[0] == {"layer": 0, "token": 0, "lost": [9], "gained": [3], "gap": hair}
    assert len(result.listed) == 100
    assert any("rows are selected otherwise" in problem for problem in result.problems)
    # Free, everything after the first block is another; told, it is the same to the hair.
    assert result.logit_max > 0.01
    assert abs(result.loss_a - result.loss_b) > 1e-4
    assert result.told_logit_max < 1e-4
    assert abs(result.loss_a - result.told_loss_b) < 1e-5
    assert not any("another rule" in problem or "logits" in problem for problem in result.problems)


def test_tolerance_widens_every_bound() -> None:
    source, other = tiny_source(), side(tiny_source())
    with torch.no_grad():
        other.model.lm_head.weight.mul_(1.001)
    tight = compare(NativeSide(source.model), other, TOKENS, ParityConfig(precisions=["fp32"]))
    wide = compare(NativeSide(source.model), other, TOKENS, ParityConfig(precisions=["fp32"], tolerance=100))
    assert tight.problems
    assert not wide.problems


def test_two_native_models_agree_to_the_bit() -> None:
    parity = compare(NativeSide(tiny_source().model), NativeSide(tiny_source().model), TOKENS, BOTH)
    parity.demand()
    for result in parity.precisions:
        assert (result.logit_max, result.flips, result.agreement, result.told_logit_max) == (0, 0, 1, None)
        assert [layer.l0_mean for layer in result.layers] == [None] * 3
    other = tiny_source()
    set_alpha(other.model, 0.5)
    assert compare(NativeSide(tiny_source().model), NativeSide(other.model), TOKENS, BOTH).problems


def test_a_dense_model_that_should_be_sparse_is_told() -> None:
    sparse, dense = tiny_source(), tiny_source(None)
    problems = compare(NativeSide(sparse.model), NativeSide(dense.model), TOKENS, BOTH).problems
    assert any("the first has 3 sparse blocks, the second 0" in p for p in problems)
    sparsify(dense.model, TOPK)
    assert not compare(NativeSide(sparse.model), NativeSide(dense.model), TOKENS, BOTH).problems
