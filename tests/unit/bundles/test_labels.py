"""The label file: lines are added, none is erased, half a line does no harm."""

import dataclasses
import json
import logging
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.bundles.labels import LABELS, Label, append_labels, newest_labels, read_labels
from topklm.errors import DataError


def label(neuron=0, text="noun.food", source="wordnet", **more):
    return Label(
        bundle="b" * 64, layer=1, neuron=neuron, source=source, label=text, date="2026-11-21T10:00:00+00:00",
        version="0.1.0", **more,
    )  # fmt: skip


def test_labels_come_back_and_later_ones_are_shown(tmp_path):
    first = [label(0, score=2.5, p=1e-4, q=0.01, significant=True, settings={"n": 3}), label(1, "a\nb \u202e<b>")]
    assert append_labels(tmp_path, first) == 2
    before = (tmp_path / LABELS).read_bytes()
    assert append_labels(tmp_path, [label(0, "noun.act"), label(0, "the", "tokens")]) == 2
    assert (tmp_path / LABELS).read_bytes().startswith(before)  # nothing is erased
    found = read_labels(tmp_path)
    assert found[:2] == first
    assert newest_labels(found)[1, 0, "wordnet"].label == "noun.act"
    assert list(newest_labels(found)) == [(1, 1, "wordnet"), (1, 0, "wordnet"), (1, 0, "tokens")]
    assert found[0].name == "1:0"


def test_the_same_is_not_said_twice_but_a_change_and_a_return_are(tmp_path):
    assert append_labels(tmp_path, [label()]) == 1
    assert append_labels(tmp_path, [dataclasses.replace(label(), date="2027-01-01T00:00:00+00:00")]) == 0
    assert append_labels(tmp_path, [label(score=1.0), label(score=1.0), label()]) == 2
    assert [each.score for each in read_labels(tmp_path)] == [None, 1.0, None]


def test_a_nan_is_null_so_that_every_reader_of_json_reads_it(tmp_path):
    append_labels(tmp_path, [label(score=float("nan"), p=float("inf"))])
    line = json.loads((tmp_path / LABELS).read_text(), parse_constant=lambda name: pytest.fail(name))
    assert line["score"] is None
    assert line["p"] is None


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 700))
def test_an_interruption_at_any_byte_loses_the_last_line_at_most(cut):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        append_labels(path, [label(i, f"wörd {i}") for i in range(2)])
        whole = (path / LABELS).read_bytes()
        half = whole[: min(cut, len(whole))]
        (path / LABELS).write_bytes(half)
        kept = half.count(b"\n") if half.endswith(b"\n") or half == whole[: len(half)] else 0
        found = read_labels(path)
        assert [each.neuron for each in found[:kept]] == list(range(kept))
        assert len(found) <= kept + 1  # the last line may be whole but for its end
        append_labels(path, [label(7)])
        assert [each.neuron for each in read_labels(path)] == [*(each.neuron for each in found), 7]
        assert (path / LABELS).read_bytes().startswith(half)


def test_broken_lines_are_told_and_others_are_read(tmp_path, caplog):
    append_labels(tmp_path, [label(0)])
    with (tmp_path / LABELS).open("a") as file:
        file.write('{"format_version": 1, "layer"\n')
        file.write(json.dumps(dataclasses.asdict(label(2)) | {"neuron": "two"}) + "\n[1]\n")
    append_labels(tmp_path, [label(3)])
    with caplog.at_level(logging.WARNING):
        assert [each.neuron for each in read_labels(tmp_path)] == [0, 3]
    assert "line 2, 3, 4 cannot be read" in caplog.text


@pytest.mark.parametrize("changes", [{"significant": "no"}, {"settings": [1]}, {"score": "0.9"}, {"layer": None}])
def test_a_line_by_hand_with_a_value_of_another_type_is_passed_over(tmp_path, changes):
    """ "no" is true in Python: such a class would be shown as a significant one."""
    (tmp_path / LABELS).write_text(json.dumps(dataclasses.asdict(label(0)) | changes) + "\n" + "[" * 100_000 + "\n")
    assert read_labels(tmp_path) == []
    append_labels(tmp_path, [label(0)])
    assert read_labels(tmp_path) == [label(0)]


def test_labels_of_a_replaced_bundle_are_not_taken_for_this_ones(tmp_path, caplog):
    append_labels(tmp_path, [label(0), dataclasses.replace(label(1), bundle="c" * 64)])
    with caplog.at_level(logging.WARNING):
        assert [each.neuron for each in read_labels(tmp_path, "c" * 64)] == [1]
    assert "1 labels are of another bundle" in caplog.text
    assert read_labels(tmp_path / "nowhere") == []


def test_a_newer_format_is_refused(tmp_path):
    (tmp_path / LABELS).write_text('{"format_version": 99}\n')
    with pytest.raises(DataError, match="format 99"):
        read_labels(tmp_path)
