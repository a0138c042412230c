"""Controls fire about as often as the steered neuron, and are other neurons."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from topklm.interp.steering.controls import draw_controls, matched


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1)), min_size=2, max_size=60),
    st.integers(1, 10),
    st.floats(1, 5),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_controls_match_in_density(density, n, tolerance, seed, data):
    density = np.array(density)
    candidates = np.flatnonzero(density > 0)
    if not len(candidates):
        return
    index = int(data.draw(st.sampled_from(candidates.tolist())))
    drawn = draw_controls(density, index, n, tolerance, (seed, 1, index))
    near = [
        i for i, d in enumerate(density)
        if i != index and d > 0 and max(d / density[index], density[index] / d) <= tolerance * (1 + 1e-12)
    ]  # fmt: skip
    assert len(drawn) == min(n, len(near))
    assert set(drawn) <= set(near)
    assert len(set(drawn)) == len(drawn)
    np.testing.assert_array_equal(drawn, draw_controls(density, index, n, tolerance, (seed, 1, index)))


def test_every_matched_neuron_may_be_drawn():
    density = np.array([0.1, 0.1, 0.11, 0.3, 0.09, 0.0])
    np.testing.assert_array_equal(matched(density, 0, 1.2), [1, 2, 4])
    drawn = {int(draw_controls(density, 0, 1, 1.2, (seed,))[0]) for seed in range(50)}
    assert drawn == {1, 2, 4}
