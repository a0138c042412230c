"""Neurons and offsets as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topklm.interp.steering.target import Neuron, Offset, parse_neurons, parse_offsets


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9999)), min_size=1, unique=True))
def test_neurons_are_read_as_they_are_written(pairs):
    neurons = [Neuron(*pair) for pair in pairs]
    assert parse_neurons(", ".join(map(str, neurons))) == neurons
    assert parse_neurons(str([str(neuron) for neuron in neurons])) == neurons


def test_the_papers_layers_count_from_one():
    assert parse_neurons("22:894,19:1439", first_layer=1) == [Neuron(21, 894), Neuron(18, 1439)]


@pytest.mark.parametrize(
    ("text", "told"),
    [("21", "'21' is not LAYER:INDEX"), ("1:2,-1:3", "'-1:3' is not"), ("1:2,1:2", "1:2 is given twice"), ("", "''")],
)
def test_wrong_neurons_are_told(text, told):
    with pytest.raises(ValueError, match=told):
        parse_neurons(text)


def test_a_layer_below_the_first_is_told():
    with pytest.raises(ValueError, match="layers count from 1"):
        parse_neurons("0:3", first_layer=1)


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
