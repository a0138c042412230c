"""The percentile of a neuron's activation: exact where it is said to be, inside its bounds elsewhere."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.evaluate.tiny_lm import tiny_model
from topklm.bundles import Sketch
from topklm.bundles.exponent import N_CODES, code_of
from topklm.interp.neurons import Neuron
from topklm.interp.steering.scale import measured_scales, rank_of, scale_from_bundle


def stats_of(values, n_top):
    """Histogram, top contexts and maximum of two neurons, the second with these values."""
    values = np.stack((np.ones_like(values), values), 1)
    histogram = np.stack([np.bincount(code_of(column), minlength=N_CODES) for column in values.T], 1)
    top = Sketch(2, n_top)
    for neuron in range(2):
        positive = np.flatnonzero(values[:, neuron] > 0)
        top.offer(np.full(len(positive), neuron), -values[positive, neuron], positive, values[positive, neuron])
    return SimpleNamespace(histogram=histogram, top=top, maximum=values.max(0))


floats = st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False)


@given(
    st.lists(st.one_of(st.just(0.0), floats), min_size=1, max_size=60),
    st.sampled_from([0.1, 50.0, 99.0, 99.9, 100.0]),
    st.integers(1, 5),
)
def test_the_bundles_percentile_encloses_the_true_one(values, percentile, n_top):
    values = np.array(values, np.float64)
    rank = max(1, math.ceil(Fraction(str(percentile)) / 100 * len(values)))
    true = np.sort(values)[rank - 1]
    scale = scale_from_bundle(stats_of(values, n_top), 1, len(values), percentile)
    assert scale.low <= true <= scale.high
    assert scale.low <= scale.value <= scale.high
    if true > 0 and len(values) - rank < n_top:
        assert (scale.value, scale.low, scale.high) == (true, true, true)
    if true:
        assert scale.high <= 2 * abs(scale.low) if true > 0 else abs(scale.low) <= 2 * abs(scale.high)


def test_ranks_are_exact():
    assert rank_of(99.9, 1000) == 999  # 99.9 / 100 * 1000 is a little more in floating point
    assert (rank_of(100, 7), rank_of(0.001, 7)) == (7, 1)


def test_what_is_measured_is_the_order_statistic_of_the_blocks_outputs():
    model = tiny_model()
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randint(0, 256, (2, 30), generator=generator), None) for _ in range(3)]
    neurons = [Neuron(0, 3), Neuron(2, 5), Neuron(0, 7)]
    found = measured_scales(model, batches, neurons, 90.0)
    outputs = {0: [], 2: []}
    for tokens, _ in batches:
        for row in tokens:  # one at a time, block by block
            h = model.tok_embeddings(row[None])
            rope = model._rope(h.shape[1], h)
            for layer, block in enumerate(model.layers):
                h = block(h, rope, None)
                if layer in outputs:
                    outputs[layer].append(h[0].detach().numpy())
    for neuron in neurons:
        values = np.sort(np.concatenate(outputs[neuron.layer])[:, neuron.index])
        assert found[neuron].value == pytest.approx(values[math.ceil(0.9 * 180) - 1], rel=1e-12, abs=1e-14)
        assert found[neuron].n_tokens == 180
        assert found[neuron].low == found[neuron].high
