"""Lingua's own blocks are changed as ours are."""

import pytest
import torch

from tests.unit.model.test_lingua import SPARSE, TINY, both, either, float_is_double, tokens  # noqa: F401
from topklm.interp.interventions import Intervention, intervene

CHANGES = {
    "add before the cut": Intervention(layer=1, neurons=[5], site="pre", op="add", value=3.0),
    "zero after it": Intervention(layers="0:", neurons=[1, 2, 3], op="zero"),
    "zero, and others enter": Intervention(layer=0, neurons=[7], op="zero", refill=True),
    "set in the dense tail": Intervention(layer=2, neurons=[4], op="set", value=1.5, positions="last"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_same_change_has_the_same_effect(either, float_is_double, name):  # noqa: F811
    native, lingua = both(TINY, SPARSE, torch.float64)
    with torch.no_grad():
        before = native(tokens()), lingua(tokens())
        with intervene(native, [CHANGES[name]]), intervene(lingua, [CHANGES[name]]):
            changed = native(tokens()), lingua(tokens())
        after = native(tokens()), lingua(tokens())
    torch.testing.assert_close(changed[0], changed[1], rtol=1e-9, atol=1e-9)
    assert (changed[0] - before[0]).abs().max() > 1e-6
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
