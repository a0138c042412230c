"""Offsets as people write them."""

import pytest

from topklm.interp.steering.offsets import Offset, parse_offsets


def test_offsets_are_absolute_or_multiples():
    assert parse_offsets([8, "2x", -0.5]) == [Offset(-0.5), Offset(8.0), Offset(2.0, True)]
    assert parse_offsets([8, "2x"], relative=True) == [Offset(2.0, True), Offset(8.0, True)]
    assert Offset(2.0, True).absolute(1.5) == 3.0
    assert Offset(8.0).absolute(None) == 8.0
    with pytest.raises(ValueError, match="needs the neuron's percentile"):
        Offset(2.0, True).absolute(None)


def test_all_wrong_offsets_are_told_at_once():
    with pytest.raises(ValueError, match=r"'much' is neither.*nan.*2x is given twice"):
        parse_offsets(["much", "nan", "2x", "2.0x"])
