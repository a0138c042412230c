"""`sparsify` on a live `LlamaForCausalLM`: generation, cache, checkpointing, hidden states, and what is saved of it."""

import copy
import dataclasses
import json
import logging

import pytest
import torch

from tests.unit.model.llama import VARIANTS, random_llama
from topklm import load_model, set_alpha, sparsify
from topklm.errors import ConfigError
from topklm.model import build_model
from topklm.model.huggingface import config_to_hf, weights_from_hf
from topklm.sparsity import TopKConfig, get_alpha

transformers = pytest.importorskip("transformers")

CONFIG = dataclasses.replace(VARIANTS["gqa"], n_layers=4)
TOPK = TopKConfig(k=5, n_dense_tail=1)
TOKENS = torch.randint(2, CONFIG.vocab_size, (2, 12), generator=torch.Generator().manual_seed(4))


@pytest.fixture
def live():
    return sparsify(random_llama(config_to_hf(CONFIG), pad_token_id=0, eos_token_id=None), TOPK)


def native(hf):
    model = build_model(CONFIG, TOPK)
    model.load_state_dict(weights_from_hf(hf.state_dict(), CONFIG))
    return model.eval()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_it_computes_what_the_native_model_does(live, alpha):
    ours = native(live)
    for model in (live, ours):
        set_alpha(model, alpha)
    torch.testing.assert_close(live(TOKENS).logits, ours(TOKENS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("before", [True, False], ids=["recorded before", "not recorded before"])
def test_hidden_states_are_the_sparse_ones(before, live):
    # transformers installs what records them at the first call: before sparsify, or after it
    model = random_llama(config_to_hf(CONFIG))
    if before:
        dense = model(TOKENS, output_hidden_states=True).hidden_states
        assert (dense[1] != 0).all()
    states = sparsify(model, TOPK)(TOKENS, output_hidden_states=True).hidden_states
    counts = [(state != 0).sum(-1).max().item() for state in states]
    assert len(counts) == 5  # embeddings, then the four blocks; the last one after the final norm
    assert all(1 <= n <= 5 for n in counts[1:4])
    assert counts[0] == counts[4] == 24


def test_generation_with_the_cache_is_generation_without_it(live):
    settings = {"max_new_tokens": 20, "do_sample": False}
    cached = live.generate(TOKENS, use_cache=True, **settings)
    assert torch.equal(cached, live.generate(TOKENS, use_cache=False, **settings))
    ours, tokens = native(live), TOKENS
    for _ in range(20):
        tokens = torch.cat((tokens, ours(tokens)[:, -1:].argmax(-1)), 1)
    assert torch.equal(cached, tokens)


def test_a_padded_row_of_a_batch_generates_what_it_does_alone(live):
    padded = TOKENS.clone()
    padded[1, :5] = 0
    mask = (padded != 0).long()
    both = live.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False)
    alone = live.generate(TOKENS[1:, 5:], max_new_tokens=8, do_sample=False)
    assert torch.equal(both[1, 12:], alone[0, 7:])


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(alpha, order, use_reentrant):
    plain, recomputed = (random_llama(config_to_hf(CONFIG)).train() for _ in range(2))
    enable = {"gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    if order == "before":
        recomputed.gradient_checkpointing_enable(**enable)
    calls = []
    for model in (plain, recomputed):
        sparsify(model, TOPK)
        set_alpha(model, alpha)
    if order == "after":
        recomputed.gradient_checkpointing_enable(**enable)
    recomputed.model.layers[0].mlp.register_forward_hook(lambda *args: calls.append(1))
    for model in (plain, recomputed):
        model(TOKENS, labels=TOKENS).loss.backward()
    assert len(calls) == 2  # forward, and again in the backward
    for (name, a), b in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_the_configuration_tells_the_topk_and_the_current_alpha(live):
    assert live.config.topk == {**dataclasses.asdict(TOPK), "alpha": 0.0}
    set_alpha(live, 0.375)
    assert live.config.topk["alpha"] == 0.375
    other = copy.deepcopy(live)
    set_alpha(other, 0.25)
    assert (live.config.topk["alpha"], other.config.topk["alpha"]) == (0.375, 0.25)
    assert (get_alpha(live), get_alpha(other)) == (0.375, 0.25)
    inner = random_llama(config_to_hf(CONFIG))
    sparsify(inner.model, TOPK)  # shares the configuration
    set_alpha(inner, 0.5)
    assert inner.config.topk["alpha"] == 0.5


@pytest.mark.parametrize("alpha", [0.0, 0.375])
def test_what_save_pretrained_writes_is_loaded_with_its_topk_here_and_dense_by_transformers(live, tmp_path, alpha):
    set_alpha(live, alpha)
    live.save_pretrained(tmp_path)
    model, _, loaded = load_model(tmp_path)
    assert (loaded.topk, loaded.alpha, get_alpha(model)) == (TOPK, alpha, alpha)
    torch.testing.assert_close(model(TOKENS), live(TOKENS).logits, atol=1e-5, rtol=1e-5)
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(dense) is transformers.LlamaForCausalLM
    assert not torch.allclose(dense(TOKENS).logits, live(TOKENS).logits, atol=1e-2)
    # The section came back with it, so sparsify can be given what it was.
    again = sparsify(dense, TopKConfig(**{k: v for k, v in dense.config.topk.items() if k != "alpha"}))
    set_alpha(again, alpha)
    assert torch.equal(again(TOKENS).logits, live(TOKENS).logits)


def test_the_trap_is_told_once_for_each_object(caplog):
    with caplog.at_level(logging.WARNING, "topklm.sparsity"):
        model = sparsify(random_llama(config_to_hf(CONFIG)), TOPK)
        for alpha in (1.0, 0.5, 0.0):
            set_alpha(model, alpha)
            model(TOKENS)
    assert len(caplog.records) == 1
    assert all(text in caplog.text for text in ("DENSE", "LlamaForCausalLM", "python -m apps.export"))


def test_nothing_is_written_or_told_where_nothing_is_cut(caplog):
    with caplog.at_level(logging.WARNING, "topklm.sparsity"):
        model = sparsify(random_llama(config_to_hf(CONFIG)), TopKConfig(k=5, n_dense_tail=4))
        build_model(CONFIG, TOPK)
    assert not hasattr(model.config, "topk")
    assert not caplog.records


def test_a_model_with_a_topk_of_its_own_is_refused():
    model = random_llama(config_to_hf(CONFIG))
    model.config.model_type = "topk_llama"
    with pytest.raises(ConfigError, match="a TopK model already"):
        sparsify(model, TOPK)


def test_the_section_is_plain_json(live, tmp_path):
    live.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "llama"
    assert written["topk"] == {"activation": "topk", "k": 5, "k_per_layer": None, "n_dense_tail": 1,
                               "anneal_form": "blend", "anneal_ratio": 0.5, "anneal_steps": None, "schedule": "mask",
                               "gradient": "plain", "options": {}, "alpha": 0.0}  # fmt: skip
