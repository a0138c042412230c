"""Llama's sizes and weights into ours and back: exact, and the same function as transformers'."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.model.llama import BASE, LLAMA3, VARIANTS, random_llama
from topklm.errors import CheckpointError, ConfigError
from topklm.model import ModelConfig, RopeScaling, Transformer
from topklm.model.huggingface import config_from_hf, config_to_hf, hf_names, weights_from_hf, weights_to_hf

variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


@st.composite
def configs(draw):
    heads, kv = draw(st.sampled_from([(1, None), (2, 1), (4, 2), (6, 3), (3, None)]))
    width = 2 * draw(st.integers(1, 5))
    own = draw(st.booleans())  # head_dim other than dim / n_heads
    return ModelConfig(
        dim=heads * width + (2 * heads if own else 0), n_layers=draw(st.integers(1, 3)), n_heads=heads, n_kv_heads=kv,
        head_dim=width if own else None, ffn_dim=draw(st.integers(1, 9)), vocab_size=draw(st.integers(1, 20)),
        norm_eps=draw(st.sampled_from([1e-5, 1e-6])), rope_theta=draw(st.floats(1.0, 1e7)),
        max_seqlen=draw(st.integers(1, 200_000)), weight_tying=draw(st.booleans()),
        rope_scaling=draw(st.sampled_from([None, LLAMA3, RopeScaling(type="linear", factor=2.5)])),
    )  # fmt: skip


def random_state(config, names, seed):
    generator = torch.Generator().manual_seed(seed)
    state = Transformer(config).state_dict()
    return {theirs: torch.randn(state[ours].shape, generator=generator) for ours, theirs in names.items()}


@settings(max_examples=60, deadline=None)
@given(configs(), st.integers(0, 2**31))
def test_there_and_back_is_bit_for_bit_the_same(config, seed):
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config
    state = random_state(config, hf_names(config), seed)
    back = weights_to_hf(weights_from_hf(state, config), config)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


@variants
def test_names_sizes_and_json_are_those_of_transformers(config):
    pytest.importorskip("transformers")
    hf = random_llama(config_to_hf(config))
    names = set(hf.state_dict()) - ({"lm_head.weight"} if config.weight_tying else set())
    assert names == set(hf_names(config).values())
    assert config_from_hf(json.loads(hf.config.to_json_string())) == config  # as transformers writes it
    Transformer(config).load_state_dict(weights_from_hf(hf.state_dict(), config))


@variants
def test_fp32_logits_and_gradients_are_those_of_transformers(config):
    pytest.importorskip("transformers")
    hf, ours, tokens = pair(config)
    torch.testing.assert_close(ours(tokens), hf(tokens).logits, atol=1e-5, rtol=1e-5)
    compare_gradients(hf, ours, tokens, atol=2e-5)


@variants
def test_float64_logits_and_gradients_are_those_of_transformers(config, monkeypatch):
    """To 1e-10 once its two islands of fp32 are float64 as ours are: the norms, and the angles of the rotation.

    With the islands it can be no closer than fp32 itself, which the first assertion shows.
    """
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    hf, ours, tokens = pair(config, torch.float64)
    assert 1e-10 < (ours(tokens) - hf(tokens).logits).abs().max() < 1e-5

    def norm(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).sqrt() * self.weight

    def rotation(self, x, position_ids):
        width = config.head_width
        frequencies = config.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        if config.rope_scaling is not None:
            frequencies = config.rope_scaling.apply(frequencies)  # tested in test_rope_scaling.py
        angles = position_ids[..., None].double() * frequencies
        return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()

    monkeypatch.setattr(llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(llama.LlamaRotaryEmbedding, "forward", rotation)
    torch.testing.assert_close(ours(tokens), hf(tokens).logits, atol=1e-10, rtol=1e-10)
    compare_gradients(hf, ours, tokens, atol=1e-10)


def pair(config, dtype=torch.float32):
    hf = random_llama(config_to_hf(config), attn_implementation="sdpa").to(dtype)
    ours = Transformer(config).to(dtype)
    ours.load_state_dict(weights_from_hf(hf.state_dict(), config))
    return hf, ours, torch.randint(0, config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(1))


def compare_gradients(hf, ours, tokens, atol):
    hf.zero_grad()
    logits = hf(tokens[:, :-1]).logits  # a loss of its own would be computed in fp32
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    ours(tokens[:, :-1], tokens[:, 1:]).backward()
    theirs = weights_from_hf({name: p.grad for name, p in hf.named_parameters()}, ours.config)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs[name], atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_transformers_4_and_5_keep_the_rotary_base_in_other_places():
    written = config_to_hf(VARIANTS["llama3"])
    four = {key: value for key, value in written.items() if key != "rope_parameters"}
    five = {key: value for key, value in written.items() if key not in ("rope_theta", "rope_scaling")}
    assert config_from_hf(four) == config_from_hf(five) == VARIANTS["llama3"]
    old = {**four, "rope_scaling": {"type": "linear", "factor": 3}}
    assert config_from_hf(old).rope_scaling == RopeScaling(type="linear", factor=3.0)


def test_absent_keys_mean_what_they_mean_in_transformers():
    transformers = pytest.importorskip("transformers")
    sizes = {"model_type": "llama", "vocab_size": 31, "hidden_size": 24, "intermediate_size": 40,
             "num_hidden_layers": 2, "num_attention_heads": 4}  # fmt: skip
    full = json.loads(transformers.LlamaConfig(**sizes).to_json_string())
    assert config_from_hf(sizes) == config_from_hf(full)


def test_everything_that_ours_cannot_do_is_told_at_once():
    wrong = {
        "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "sliding_window": 4096, "model_type": "mistral",
        "architectures": ["MistralForCausalLM"], "num_hidden_layers": "two", "quantization_config": {"bits": 4},
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    }  # fmt: skip
    hf = {**config_to_hf(BASE), **wrong}
    del hf["vocab_size"]
    with pytest.raises(ConfigError) as caught:
        config_from_hf(hf)
    keys = {problem.key for problem in caught.value.problems}
    assert keys == {*wrong, "vocab_size", "rope_parameters.rope_type", "rope_parameters.partial_rotary_factor"} - {
        "rope_parameters"
    }


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"num_key_value_heads": 3}, "n_kv_heads"),
        ({"head_dim": 5}, "head_dim"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}},
         "rope_scaling.high_freq_factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters.low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({"rope_parameters": 7}, "rope_parameters"),
        ({"rope_theta": "10000", "rope_parameters": None}, "rope_theta"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ],
)  # fmt: skip
def test_sizes_that_make_no_model_are_named(wrong, key):
    with pytest.raises(ConfigError) as caught:
        config_from_hf({**config_to_hf(BASE), **wrong})
    assert key in [problem.key for problem in caught.value.problems]


def test_sizes_that_transformers_refuses_are_told_before_a_file_is_written():
    with pytest.raises(ConfigError) as caught:
        config_to_hf(ModelConfig(dim=26, n_heads=4, head_dim=6, vocab_size=-1))
    assert [problem.key for problem in caught.value.problems] == ["vocab_size", "n_heads"]


def test_every_tensor_that_does_not_fit_is_named():
    config = VARIANTS["gqa"]
    state = random_state(config, hf_names(config), 0)
    del state["model.norm.weight"]
    state["model.layers.2.mlp.up_proj.weight"] = torch.zeros(40, 24)
    state["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(24, 24)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(3)  # of old files; passed over
    with pytest.raises(CheckpointError) as caught:
        weights_from_hf(state, config)
    message = str(caught.value)
    assert message.startswith("3 tensors")
    assert "model.norm.weight is missing" in message
    assert "model.layers.2.mlp.up_proj.weight is not known" in message
    assert "model.layers.0.self_attn.k_proj.weight is [24, 24] instead of [12, 24]" in message


def test_bf16_weights_stay_bf16_and_only_rotated_ones_are_copied():
    config = VARIANTS["tied"]
    state = {name: t.bfloat16() for name, t in random_state(config, hf_names(config), 0).items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    ours = weights_from_hf(state, config)
    assert {t.dtype for t in ours.values()} == {torch.bfloat16}
    shared = {name for name, theirs in hf_names(config).items() if ours[name].data_ptr() == state[theirs].data_ptr()}
    assert {name for name in ours if name not in shared} == {
        f"layers.{i}.attention.{w}.weight" for i in range(2) for w in ("wq", "wk")
    }
