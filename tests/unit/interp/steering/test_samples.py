"""Texts are kept cell by cell; what an interruption left of a cell is dropped; other settings are refused."""

import pytest

from topklm.errors import ConfigError
from topklm.interp.neurons import Neuron
from topklm.interp.steering.samples import Sample, SampleStore

SETTINGS = {"prompt": "Once", "sampling": {"seed": 0}, "stop": ("a",)}


def cell(neuron, offset, n=3):
    return [
        Sample(neuron=neuron, offset=offset, sample=i, text=f"é\u2028\n{i}", ids=[i, 5], nll=i / 3, finish_reason="eos")
        for i in range(n)
    ]


def test_what_is_added_is_there_when_it_is_opened_again(tmp_path):
    cells = [cell(None, 0.0), cell(Neuron(3, 44), 0.1 + 0.2), cell(Neuron(3, 44), -8.0)]
    store = SampleStore(tmp_path / "new", SETTINGS, 3)
    for each in cells:
        store.add(each)
    again = SampleStore(tmp_path / "new", SETTINGS, 3)
    assert len(again) == 3
    for each in cells:
        assert again.get(each[0].neuron, each[0].offset) == each
    assert again.get(Neuron(3, 44), 8.0) is None


@pytest.mark.parametrize(("cut", "whole"), [(1, 2), (2, 1), (30, 1), (150, 1)])
def test_an_unfinished_cell_is_dropped_and_can_be_made_again(tmp_path, cut, whole):
    store = SampleStore(tmp_path, SETTINGS, 3)
    store.add(cell(None, 0.0))
    store.add(cell(Neuron(0, 1), 2.0))
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = SampleStore(tmp_path, SETTINGS, 3)
    assert len(again) == whole  # a whole last line is one without its end too
    if whole == 1:
        again.add(cell(Neuron(0, 1), 2.0))
    assert path.read_text(encoding="utf-8").count("\n") == 6
    assert SampleStore(tmp_path, SETTINGS, 3).get(Neuron(0, 1), 2.0) == cell(Neuron(0, 1), 2.0)


def test_texts_of_other_settings_are_refused_or_replaced(tmp_path):
    SampleStore(tmp_path, SETTINGS, 3).add(cell(None, 0.0))
    other = {**SETTINGS, "prompt": "Twice"}
    with pytest.raises(ConfigError, match="another prompt; give another out, or overwrite=true"):
        SampleStore(tmp_path, other, 3)
    assert len(SampleStore(tmp_path, SETTINGS, 3)) == 1
    assert len(SampleStore(tmp_path, other, 3, overwrite=True)) == 0
    assert len(SampleStore(tmp_path, other, 3)) == 0


def test_without_a_directory_texts_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = SampleStore(None, SETTINGS, 3)
    store.add(cell(None, 0.0))
    assert store.get(None, 0.0) == cell(None, 0.0)
    assert not list(tmp_path.iterdir())
