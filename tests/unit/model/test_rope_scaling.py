"""Scaled rotary frequencies against the published rule, written by cases in float64, and against transformers."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.model import reference
from tests.unit.model.llama import VARIANTS
from topklm.config import build
from topklm.errors import ConfigError
from topklm.model import ModelConfig, RopeScaling, Transformer
from topklm.model.huggingface import config_to_hf
from topklm.model.transformer import rotary_table


def by_cases(f, scaling):
    """Llama 3.1's rule for one frequency."""
    wavelength = 2 * math.pi / f
    if wavelength < scaling.original_max_seqlen / scaling.high_freq_factor:
        return f
    if wavelength > scaling.original_max_seqlen / scaling.low_freq_factor:
        return f / scaling.factor
    smooth = (scaling.original_max_seqlen / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1 - smooth) * f / scaling.factor + smooth * f


@given(
    st.floats(1.0, 64.0), st.floats(0.5, 2.0), st.floats(2.5, 8.0), st.integers(16, 8192), st.floats(1e2, 1e6),
    st.integers(1, 64),
)  # fmt: skip
def test_llama3_is_the_published_rule(factor, low, high, original, theta, pairs):
    scaling = RopeScaling(
        type="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_seqlen=original
    )
    frequencies = theta ** (-np.arange(pairs) / pairs)
    expected = [by_cases(f, scaling) for f in frequencies]
    np.testing.assert_allclose(scaling.apply(torch.from_numpy(frequencies)).numpy(), expected, rtol=1e-12)


def test_linear_divides_every_frequency():
    frequencies = torch.tensor([1.0, 0.1, 0.001], dtype=torch.float64)
    assert torch.equal(RopeScaling(type="linear", factor=4.0).apply(frequencies), frequencies / 4)


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize(
    "scaling",
    [None, RopeScaling(type="linear", factor=2.0), RopeScaling(factor=32.0)],
    ids=["none", "linear", "llama3"],
)
def test_fp32_tables_are_bit_for_bit_those_of_transformers(theta, scaling):
    """Far positions multiply a rounding of the frequency, so nothing less will do."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = ModelConfig(dim=128, n_heads=2, vocab_size=9, rope_theta=theta, rope_scaling=scaling, max_seqlen=131072)
    hf = llama.LlamaRotaryEmbedding(llama.LlamaConfig(**config_to_hf(config)))
    x = torch.zeros(1)
    cos, sin = hf(x, torch.arange(4096)[None])
    ours = rotary_table(4096, 64, theta, scaling, x)
    for mine, theirs in zip(ours, (cos, sin), strict=True):
        assert torch.equal(mine, theirs[0, :, :32])


def test_the_transformer_uses_the_scaled_frequencies(monkeypatch):
    config = dataclasses.replace(VARIANTS["llama3"], n_layers=1)
    model = Transformer(config).double()
    weights = {name: p.detach().numpy() for name, p in model.state_dict().items()}
    tokens = torch.arange(20)[None]
    plain = reference.logits(tokens[0].numpy(), weights, config)
    width = config.head_width
    scaled = [by_cases(config.rope_theta ** (-2 * j / width), config.rope_scaling) for j in range(width // 2)]

    def rope(x, theta):
        angle = np.outer(np.arange(len(x)), scaled)
        turned = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * angle)
        return np.stack((turned.real, turned.imag), -1).reshape(x.shape)

    monkeypatch.setattr(reference, "rope", rope)
    expected = reference.logits(tokens[0].numpy(), weights, config)
    logits = model(tokens)[0].detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-10)
    assert np.abs(logits - plain).max() > 1e-3


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"type": "linear", "factor": 0.0}, "rope_scaling.factor"),
        ({"low_freq_factor": 4.0}, "rope_scaling.high_freq_factor"),
        ({"original_max_seqlen": 0}, "rope_scaling.original_max_seqlen"),
        ({"type": "yarn"}, "rope_scaling.type"),
    ],
)
def test_impossible_scaling_is_named(wrong, key):
    with pytest.raises(ConfigError) as caught:
        build(ModelConfig, {"dim": 32, "n_heads": 4, "rope_scaling": wrong})
    assert [problem.key for problem in caught.value.problems] == [key]
