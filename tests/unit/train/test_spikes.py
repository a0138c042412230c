"""Spikes of the loss against a float64 reference; what the window learns and what it does not."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.train.spikes import SpikeDetector, SpikesConfig

CONFIG = SpikesConfig()


def reference(losses, window, threshold):
    """(first step, step after the last) of each spike; the last is None where it has not ended. From the definition."""
    usual, spikes, inside = [], [], False
    for step, loss in enumerate(np.asarray(losses, np.float64)):
        recent = np.array(usual[-window:], np.float64)
        if len(recent) >= window / 2:
            median = np.median(recent)
            deviation = max(1.4826 * np.median(np.abs(recent - median)), 1e-3 * abs(median)) or 1e-3
            if loss > median + threshold * deviation:
                if not inside:
                    spikes.append([step, None, (loss - median) / deviation])
                inside = True
                continue
            if inside:
                spikes[-1][1], inside = step, False
        usual.append(loss)
    return spikes


def found(losses, config):
    detector, spikes = SpikeDetector(config), []
    for step, loss in enumerate(losses):
        # An interruption between any two steps changes nothing.
        detector = SpikeDetector(config, json.loads(json.dumps(detector.state_dict())))
        spike = detector.see(step, loss)
        if spike is None:
            continue
        if detector.current is not None:
            spikes.append([spike.step, None, spike.multiple])
        else:
            spikes[-1][1] = step
    assert detector.count == len(spikes)
    return spikes


loss = st.one_of(st.floats(0, 12), st.sampled_from([2.0, 2.01, 50.0]))


@settings(deadline=None)
@given(st.lists(loss, max_size=60), st.integers(4, 12), st.floats(0.5, 12))
def test_spikes_are_those_of_the_definition(losses, window, threshold):
    expected = reference(losses, window, threshold)
    actual = found(losses, SpikesConfig(window=window, threshold=threshold))
    assert [s[:2] for s in actual] == [s[:2] for s in expected]
    assert [s[2] for s in actual] == pytest.approx([s[2] for s in expected], rel=1e-9)


def curve(n=600, seed=0):
    """A run: a fast descent in the warm-up, a slow one, and a rise of half a nat while something is cut away."""
    steps = np.arange(n)
    rise = 0.5 * np.clip((steps - 150) / 100, 0, 1)
    noise = np.random.default_rng(seed).normal(0, 0.15, n)
    return 5 + 3.8 * np.exp(-steps / 40) - 0.001 * steps + rise + noise


@pytest.mark.parametrize("seed", range(10))
def test_descent_and_annealing_are_no_spikes_and_a_planted_one_is(seed):
    losses = curve(seed=seed)
    assert found(losses, CONFIG) == []
    losses[400:403] += 2.0
    ((first, after, multiple),) = found(losses, CONFIG)
    assert (first, after) == (400, 403)
    assert multiple > CONFIG.threshold


def test_a_run_that_diverged_does_not_get_used_to_it():
    losses = curve()
    losses[300:] += 3.0
    ((first, after, _),) = found(losses, CONFIG)
    assert (first, after) == (300, None)


def test_a_loss_that_hardly_moves_is_not_alarmed_by_rounding():
    losses = [2.0] * 100 + [2.0001] + [2.0] * 10
    assert found(losses, CONFIG) == []
    assert found([0.0] * 60 + [1.0, 0.0], CONFIG)[0][:2] == [60, 61]


def test_what_cannot_be_a_window_is_refused():
    assert [p.key for p in SpikesConfig(window=3, threshold=0.0).problems()] == ["window", "threshold"]
