"""Neurons as people write them, and as results list them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topklm.errors import DataError
from topklm.interp.neurons import Neuron, parse_neurons, result_neurons


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


def test_a_result_names_its_neurons_in_its_order(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"data": {"neurons": ["1:4", "0:3"]}}))
    assert result_neurons(tmp_path) == [Neuron(1, 4), Neuron(0, 3)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "names no neurons .*result.json"),
        ("{", "names no neurons"),
        ("[]", "names no neurons"),
        ("{}", "names no neurons .it has no 'data'"),
        ('{"data": {"curves": []}}', "it has no 'neurons'.*apps.label candidates"),
        ('{"data": {"neurons": 3}}', "not a list"),
        ('{"data": {"neurons": "1:2"}}', "not a list"),
        ('{"data": {"neurons": ["1:2:3"]}}', "'1:2:3' is not LAYER:INDEX"),
        ('{"data": {"neurons": []}}', "found no candidates"),
    ],
)
def test_a_result_without_neurons_is_told(tmp_path, text, told):
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(DataError, match=told):
        result_neurons(tmp_path)
