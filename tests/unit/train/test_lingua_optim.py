"""Meta Lingua's schedules and optimizer: against an independent float64 reference, and genuine Lingua where it is."""

import importlib
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from topklm.train.optim import OptimConfig, build_optimizer, learning_rate

SCHEDULERS = ("constant", "linear", "inv_sqrt", "cosine", "wsd")


def reference(c: OptimConfig, steps: int) -> np.ndarray:
    """Factor of the learning rate at every step of a run, float64 [steps]: the published shapes, step by step.

    The waves of cosine and the cycles of wsd are counted in whole steps of the run, warm-up included. A cosine is
    turned over in every second cycle; wsd interpolates 1/lr between 1 and 1/lr_min_ratio at the end of a cycle.
    """
    t = np.arange(steps, dtype=np.float64)
    warm = np.divide(t, c.warmup, out=np.zeros_like(t), where=c.warmup > 0)
    done = np.clip((t - c.warmup) / max(1, steps - c.warmup), 0, None)
    if c.scheduler == "constant":
        return np.ones(steps)
    if c.scheduler == "linear":
        shape = 1 - (1 - c.lr_min_ratio) * done
    elif c.scheduler == "inv_sqrt":
        shape = np.maximum((c.warmup / np.maximum(t, 1)) ** c.exp_factor, c.lr_min_ratio)
    elif c.scheduler == "cosine":
        odd = np.floor_divide(t, steps * c.cycle_length) % 2 == 1
        wave = np.cos(np.pi * done**c.cosine_theta / c.cycle_length)
        shape = c.lr_min_ratio + (1 - c.lr_min_ratio) * (1 + np.where(odd, -wave, wave)) / 2
    else:
        shape = np.ones(steps)
        cycle = int(steps * c.cycle_length)
        for end in range(cycle, steps + cycle, cycle):
            length = int(end * c.decay_fraction)
            inside = (t > end - length) & (t < end)
            shape[inside] = 1 / np.interp(t[inside], [end - length, end], [1, 1 / c.lr_min_ratio])
    return np.where(t < c.warmup, warm, shape)


@st.composite
def settings(draw):
    scheduler = draw(st.sampled_from(SCHEDULERS))
    steps = draw(st.integers(5, 200))
    # As a whole number of 1/8, so that the borders of cycles are the same in every arithmetic.
    cycle_length = draw(st.sampled_from([1.0, 0.5, 0.25, 0.75, 2.0]))
    config = OptimConfig(
        lr=draw(st.sampled_from([1.0, 3e-4])),
        scheduler=scheduler,
        warmup=draw(st.integers(1 if scheduler == "inv_sqrt" else 0, 250)),
        lr_min_ratio=draw(st.sampled_from([1e-6, 0.1, 0.5] if scheduler == "wsd" else [0.0, 1e-6, 0.1, 1.0])),
        cycle_length=cycle_length,
        cosine_theta=draw(st.sampled_from([1.0, 0.5, 2.0])),
        decay_fraction=draw(st.sampled_from([0.0, 0.1, 0.2])),
        exp_factor=draw(st.sampled_from([0.5, 1.0])),
    )
    return config, steps


@given(settings())
def test_every_step_of_every_schedule_is_the_references(given):
    config, steps = given
    found = [learning_rate(config, step, steps) for step in range(steps)]
    np.testing.assert_allclose(found, config.lr * reference(config, steps), rtol=1e-12, atol=1e-15)


def test_the_reference_has_the_shapes_that_are_meant():
    """The reference itself, at points that can be worked out by hand."""
    cosine = reference(OptimConfig(warmup=0, cycle_length=0.5), 100)
    assert cosine[[0, 25, 49]] == pytest.approx([1, 0.55, 0.1], abs=2e-3)
    # Lingua's second cycle is the wave turned over: it goes down as well, after a jump to the top.
    assert cosine[[50, 75, 99]] == pytest.approx([1, 0.55, 0.1], abs=2e-3)
    wsd = reference(OptimConfig(scheduler="wsd", warmup=10, decay_fraction=0.2, cycle_length=0.5), 100)
    assert wsd[[5, 10, 40, 45, 50, 79, 80]] == pytest.approx([0.5, 1, 1, 1 / 5.5, 1, 1, 1])
    assert wsd[90] == pytest.approx(1 / 5.5)
    assert reference(OptimConfig(scheduler="inv_sqrt", warmup=4), 17)[[2, 4, 16]] == pytest.approx([0.5, 1, 0.5])


def test_adamw_with_clipping_is_the_published_one():
    """Loshchilov and Hutter's decoupled decay on every parameter, norms included, in float64 by hand."""
    torch.manual_seed(0)
    config = OptimConfig(lr=0.1, weight_decay=0.3, warmup=2, scheduler="cosine", clip=0.5, epsilon=1e-4)
    start = [torch.randn(4, 3), torch.randn(5)]  # a matrix, and a norm's vector
    parameters = [torch.nn.Parameter(w.clone()) for w in start]
    optimizer = build_optimizer(torch.nn.ParameterList(parameters), config)
    weights = [w.double() for w in start]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for step in range(6):
        gradients = [torch.randn_like(w) for w in start]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        rate = learning_rate(config, step, 6)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        for i, gradient in enumerate(gradients):
            g = gradient.double() * min(1.0, config.clip / (norm + 1e-6))
            first[i] = config.beta1 * first[i] + (1 - config.beta1) * g
            second[i] = config.beta2 * second[i] + (1 - config.beta2) * g**2
            m = first[i] / (1 - config.beta1 ** (step + 1))
            v = second[i] / (1 - config.beta2 ** (step + 1))
            weights[i] = weights[i] * (1 - rate * config.weight_decay) - rate * m / (v.sqrt() + config.epsilon)
    for parameter, weight in zip(parameters, weights, strict=True):
        torch.testing.assert_close(parameter.detach().double(), weight, rtol=1e-5, atol=1e-6)


@pytest.fixture
def genuine():
    """Genuine Lingua's `lingua.optim`; skipped where no checkout is on PYTHONPATH."""
    pytest.importorskip("lingua.optim", reason="no Meta Lingua on PYTHONPATH", exc_type=ImportError)
    return importlib.import_module("lingua.optim")


def test_genuine_defaults_are_ours(genuine):
    theirs, ours = vars(genuine.OptimArgs()), vars(OptimConfig())
    assert {**ours, "annealing_step": 1000} == theirs


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_genuine_schedules_are_ours_at_every_step(genuine, scheduler):
    """Compared where Lingua applies it: at steps 0 ... n - 1. (At n, which no update sees, its cosine is back at 1.)"""
    grid = itertools.product(
        (5, 64, 100, 101), (0, 1, 10, 300), (0.0, 1e-6, 0.1), (1.0, 0.5, 0.3, 2.0), (1.0, 0.5, 2.0), (0.0, 0.1, 0.25)
    )
    compared = 0
    for steps, warmup, low, cycle, theta, decay in grid:
        if (scheduler == "wsd" and low == 0) or (scheduler == "inv_sqrt" and warmup == 0):
            continue  # Lingua divides by zero there
        if int(steps * cycle) < 1:
            continue
        fields = {
            "scheduler": scheduler, "warmup": warmup, "lr_min_ratio": low, "cycle_length": cycle,
            "cosine_theta": theta, "decay_fraction": decay,
        }  # fmt: skip
        theirs = genuine.build_lr_fn(genuine.OptimArgs(**fields), steps)
        ours = OptimConfig(lr=1.0, **fields)
        found = [learning_rate(ours, step, steps) for step in range(steps)]
        expected = [theirs(step) for step in range(steps)]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
        compared += steps
    assert compared > 5000


def test_genuine_training_steps_are_ours(genuine):
    """Scheduler, clipping and AdamW together: the same weights from the same gradients, bit for bit."""
    torch.manual_seed(1)
    fields = {"lr": 0.05, "weight_decay": 0.2, "warmup": 3, "clip": 0.7, "scheduler": "cosine", "lr_min_ratio": 0.05}
    theirs = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(8, 4)), torch.nn.Parameter(torch.randn(4))])
    ours = torch.nn.ParameterList([torch.nn.Parameter(p.detach().clone()) for p in theirs])
    optimizer, scheduler = genuine.build_optimizer(theirs, genuine.OptimArgs(**fields), 12)
    config = OptimConfig(**fields)
    own = build_optimizer(ours, config)
    for step in range(12):
        for a, b in zip(theirs, ours, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), fields["clip"], foreach=True)
        optimizer.step()
        scheduler.step()
        torch.nn.utils.clip_grad_norm_(ours.parameters(), config.clip)
        for group in own.param_groups:
            group["lr"] = learning_rate(config, step, 12)
        own.step()
    for a, b in zip(theirs, ours, strict=True):
        assert torch.equal(a, b)
