"""Learning rates against the closed forms, and the optimizer's skip on the device."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from topklm.config import build
from topklm.errors import ConfigError
from topklm.train.optim import OptimConfig, apply_settings, build_optimizer, learning_rate

BASE = {"lr": 2.0, "warmup": 10, "lr_min_ratio": 0.1}


def at(step, steps=110, **settings):
    return learning_rate(OptimConfig(**{**BASE, **settings}), step, steps)


def test_warmup_starts_at_zero_and_is_linear():
    for scheduler in ("linear", "inv_sqrt", "cosine", "wsd"):
        assert [at(s, scheduler=scheduler) for s in (0, 1, 5, 10)] == pytest.approx([0, 0.2, 1.0, 2.0])
    assert at(0, scheduler="constant") == 2.0


def test_shapes_after_the_warmup():
    assert at(60, scheduler="cosine") == pytest.approx(2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5))))
    assert at(35, scheduler="cosine") == pytest.approx(2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.25))))
    assert at(60, scheduler="linear") == pytest.approx(2 * 0.55)
    assert at(40, scheduler="inv_sqrt") == pytest.approx(2 * math.sqrt(10 / 40))
    assert at(10**6, scheduler="inv_sqrt") == pytest.approx(0.2)
    # wsd: flat until the last tenth, then 1/lr goes linearly from 1 to 10
    assert at(98, scheduler="wsd") == 2.0
    assert at(99 + 5, scheduler="wsd") == pytest.approx(2 / (5 / 11 * 10 + 6 / 11))
    for scheduler in ("linear", "cosine", "wsd"):
        assert at(110, scheduler=scheduler) == pytest.approx(0.2)


@given(
    st.sampled_from(["constant", "linear", "inv_sqrt", "cosine", "wsd"]),
    st.integers(0, 50), st.integers(1, 300), st.integers(0, 400),
)  # fmt: skip
def test_always_within_zero_and_the_highest(scheduler, warmup, steps, step):
    assert 0 <= at(step, steps, scheduler=scheduler, warmup=warmup) <= 2.0 + 1e-12


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError) as caught:
        build(
            OptimConfig,
            {"lr": 0, "beta1": 1.5, "warmup": -1, "weight_decay": math.nan, "scheduler": "wsd", "decay_fraction": 1.0},
        )
    assert {p.key for p in caught.value.problems} == {"lr", "beta1", "warmup", "weight_decay", "decay_fraction"}


def test_a_resumed_run_has_the_settings_that_its_configuration_says():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(torch.nn.ParameterList([weight]), OptimConfig())
    restored = optimizer.state_dict()
    changed = OptimConfig(weight_decay=0.5, beta1=0.8, beta2=0.9, epsilon=1e-5)
    fresh = build_optimizer(torch.nn.ParameterList([weight]), changed)
    fresh.load_state_dict(restored)
    apply_settings(fresh, changed)
    (group,) = fresh.param_groups
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.5, (0.8, 0.9), 1e-5)


def test_found_inf_leaves_weights_moments_and_count_as_they_were():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(torch.nn.ParameterList([weight]), OptimConfig())
    weight.grad = torch.ones(3)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    before = [t.clone() for t in (weight.detach(), *optimizer.state[weight].values())]
    weight.grad = torch.full((3,), torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    for old, new in zip(before, (weight.detach(), *optimizer.state[weight].values()), strict=True):
        assert torch.equal(old, new)
