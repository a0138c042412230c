"""Distribution and draws against an independent float64 reference, and against their own frequencies."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.config import build, to_dict
from topklm.errors import ConfigError
from topklm.generate import SamplingConfig
from topklm.generate.sampling import choose, distribution, draw, uniforms


def reference(logits, temperature, top_k, top_p, min_p):
    """Probabilities of one row, token by token, as the settings describe them."""
    scaled = [float(x) / temperature for x in logits]
    if top_k is not None:
        kth = sorted(scaled, reverse=True)[min(top_k, len(scaled)) - 1]
        scaled = [x if x >= kth else -np.inf for x in scaled]
    p = np.exp(np.array(scaled) - max(scaled))
    p /= p.sum()
    if top_p is not None and top_p < 1:
        kept, mass = set(), 0.0
        for token in sorted(range(len(p)), key=lambda i: (-p[i], i)):
            if mass >= top_p:
                break
            kept.add(token)
            mass += p[token]
        p = np.array([x if i in kept else 0.0 for i, x in enumerate(p)])
    if min_p is not None:
        p = np.where(p >= min_p * p.max(), p, 0.0)
    return p / p.sum()


SETTINGS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 4},
    {"top_k": 400},
    {"top_p": 0.6},
    {"top_p": 1e-6},
    {"top_p": 1.0},
    {"min_p": 0.2},
    {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "min_p": 0.1},
]


@pytest.mark.parametrize("settings_", SETTINGS, ids=str)
def test_the_distribution_is_the_reference(settings_):
    config = SamplingConfig(**settings_)
    logits = torch.randn(5, 23, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    logits[1, 3] = logits[1, 8] = logits[1].max() + 1  # a tie at the top
    logits[2] = 0.25  # all equal
    logits[3, 5] = -torch.inf
    weights = distribution(logits, config)
    weights = weights / weights.sum(-1, keepdim=True)
    for row, ours in zip(logits, weights, strict=True):
        expected = reference(row, config.temperature, config.top_k, config.top_p, config.min_p)
        np.testing.assert_allclose(ours.numpy(), expected, atol=1e-13)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from([0.0, 1e-300, 0.1, 1.0, 7.0]), min_size=1, max_size=12), st.floats(0, 1, exclude_max=True)
)
def test_a_draw_inverts_the_cumulative_sum_and_never_takes_an_impossible_token(weights, u):
    if not sum(weights):
        weights[-1] = 1.0
    u = min(u, 1 - 2**-53)
    (token,) = draw(torch.tensor([weights], dtype=torch.float64), torch.tensor([u], dtype=torch.float64)).tolist()
    assert weights[token] > 0
    total = np.cumsum(weights)[-1]
    assert np.cumsum(weights)[token] >= u * total
    assert token == 0 or np.cumsum(weights)[token - 1] <= u * total


@pytest.mark.parametrize("settings_", SETTINGS, ids=str)
def test_frequencies_are_the_probabilities(settings_):
    """Pearson's statistic over 20,000 draws stays below its mean + 4.5 deviations; the seed is fixed."""
    config, n = SamplingConfig(**settings_), 20_000
    logits = torch.randn(1, 23, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2
    noise = torch.from_numpy(uniforms(7, 0, 0, n))
    tokens, _ = choose(logits.expand(n, -1), noise, config, 23)
    expected = reference(logits[0], config.temperature, config.top_k, config.top_p, config.min_p)
    counts = np.bincount(tokens, minlength=23)
    assert (counts[expected == 0] == 0).all()
    likely = expected * n >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum()) * n
    used = wanted > 0
    statistic = ((observed - wanted)[used] ** 2 / wanted[used]).sum()
    freedom = used.sum() - 1
    assert statistic <= freedom + 4.5 * (2 * freedom) ** 0.5


def test_greedy_takes_the_highest_and_the_lower_index_of_equal_ones():
    logits = torch.tensor([[0.0, 3.0, 3.0, -1.0], [5.0, 1.0, 0.0, 9.0]])
    tokens, logprobs = choose(logits, None, SamplingConfig(temperature=0), 4)
    assert tokens.tolist() == [1, 3]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[[0, 1], [1, 3]])
    # Beyond the tokenizer's ids nothing is chosen, but it has its probability.
    tokens, logprobs = choose(logits, None, SamplingConfig(temperature=0), 3)
    assert tokens.tolist() == [1, 0]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[[0, 1], [1, 0]])


def test_log_probabilities_are_the_models_whatever_the_settings():
    logits = torch.randn(4, 11, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    config = SamplingConfig(temperature=0.2, top_k=3, top_p=0.9)
    tokens, logprobs = choose(logits, torch.full((4,), 0.5), config, 11)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(-1, keepdims=True)
    np.testing.assert_allclose(logprobs.numpy(), np.log(p[range(4), tokens]), atol=1e-12)


def test_tiny_and_huge_temperatures_and_logits_do_not_overflow():
    logits = torch.tensor([[1e4, -1e4, 9999.0]])
    assert distribution(logits, SamplingConfig(temperature=1e-30)).tolist() == [[1.0, 0.0, 0.0]]
    assert distribution(logits, SamplingConfig(temperature=1e30)).tolist() == [[pytest.approx(1 / 3)] * 3]


def test_the_numbers_of_a_completion_are_its_own():
    numbers = uniforms(3, 1, 2, 50)
    assert np.array_equal(numbers[:20], uniforms(3, 1, 2, 20))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # Long seeds and numbers of prompts must not run into each other.
    keys = [(3, 1, 2), (3, 2, 1), (4, 1, 2), (0, 0, 0), (2**32, 0, 0), (0, 1, 0), (0, 0, 1), (2**64 + 3, 1, 2)]
    firsts = [tuple(uniforms(*key, 3)) for key in keys]
    assert len(set(firsts)) == len(keys)


def test_settings_that_make_no_sense_are_told_at_once():
    wrong = {
        "max_tokens": 0, "temperature": -1.0, "top_k": 0, "top_p": 0.0, "min_p": 2.0, "stop": [""], "seed": -1,
        "n_samples": 0,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        build(SamplingConfig, wrong)
    assert {problem.key for problem in caught.value.problems} == set(wrong)
    assert not list(SamplingConfig().problems())
    assert [p.key for p in SamplingConfig(temperature=float("nan")).problems()] == ["temperature"]
    assert build(SamplingConfig, to_dict(SamplingConfig(top_p=1.0))) == SamplingConfig(top_p=1.0)
