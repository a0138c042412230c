"""Labels on pages and in figures: what is shown, and that nothing in a label does anything."""

import numpy as np
import pytest

from tests.unit.report.neurons.conftest import LAYERS, WIDTH, Planter
from topklm.bundles import NamedBundle
from topklm.bundles.labels import Label, append_labels
from topklm.report.labels import ClassedModel, class_drawings, class_statements, class_table, layer_table, neuron_table
from topklm.report.neurons import read_measured, write_neurons
from topklm.report.neurons.tables import neuron_tables, shown_label
from topklm.report.result import Result, write_result

NAMES = ("noun.food", "adj.all", "verb.motion")
EVIL = "</script><b>x</b>|`$\u202e\n"


@pytest.fixture
def measured(tmp_path):
    return read_measured([Planter(tmp_path)("topk-bundle")])[0]


def label(measured, neuron, source, text, **more):
    return Label(
        bundle=measured.bundle.sha256, layer=0, neuron=neuron, source=source, label=text, date="d", version="v", **more
    )  # fmt: skip


def fresh(measured):
    return read_measured([measured.bundle.path])[0]


def test_the_newest_words_of_a_model_or_person_come_before_a_class(measured):
    lines = [
        label(measured, 1, "wordnet", "noun.food", q=0.003, significant=True),
        label(measured, 2, "wordnet", "noun.act", q=0.5, significant=False),
        label(measured, 2, "tokens", "the a"),
        label(measured, 3, "llm", "old", score=0.5),
        label(measured, 3, "ada", "mine"),
        label(measured, 3, "llm", "new words", score=0.875),
        label(measured, 3, "wordnet", "noun.food", q=0.003, significant=True),
        label(measured, 4, "ada", "by hand"),
    ]
    append_labels(measured.bundle.path, lines)
    again = fresh(measured)
    shown = [shown_label(again, 0, neuron) for neuron in range(5)]
    assert shown == [None, "noun.food (q 0.003)", None, "new words (llm 0.88)", "by hand (ada)"]


def test_the_page_shows_labels_where_there_are_any_and_as_text(measured, tmp_path):
    assert "label" not in [column.key for column in neuron_tables(measured)[0].columns]
    evil = [label(measured, neuron, "llm", f"food {EVIL}", score=0.5) for neuron in range(WIDTH)]
    append_labels(measured.bundle.path, evil)
    write_neurons([fresh(measured)], tmp_path / "out")
    after = (tmp_path / "out" / "index.html").read_text()
    assert "food &lt;/script&gt;&lt;b&gt;x&lt;/b&gt;" in after
    assert "<b>x" not in after
    assert "\u202e" not in after
    markdown = (tmp_path / "out" / "neurons.md").read_text()
    assert r"food \</script\>\<b\>x" in markdown
    assert len({line.count("|") - line.count(r"\|") for line in markdown.splitlines() if "food" in line}) == 1
    assert "label" in (tmp_path / "out" / "neurons.csv").read_text().splitlines()[0].split(",")


def classed(bundle, significant, beyond, number, shuffled=(0.0, 0.02)):
    n = LAYERS * WIDTH
    silent = np.tile(np.arange(WIDTH) == 0, LAYERS)
    return ClassedModel(
        named=NamedBundle(bundle=bundle, name="topk"), layer=np.repeat(np.arange(LAYERS), WIDTH), silent=silent,
        tested=~silent, significant=np.broadcast_to(significant, n) & ~silent, beyond=np.broadcast_to(beyond, n),
        number=np.broadcast_to(number, n).copy(), shuffled=np.array(shuffled),
    )  # fmt: skip


def test_shares_are_of_the_tested_neurons(measured):
    odd = np.arange(LAYERS * WIDTH) % 2 == 1  # 3 of the 5 that are tested in each layer of 6
    model = classed(measured.bundle, odd, False, np.where(odd, 1, -1))
    (said,) = class_statements([model], NAMES, "words", 0.05)
    assert "12 of 20 tested neurons (60.0%) prefer words of a class over all words (q <= 0.05)" in said
    assert "with classes shuffled 2 times 1.00% on average, 2.00% at most" in said
    assert "Over words of the same part of speech it is 0.0%. Most often: adj.all 12." in said
    table = layer_table([model], "words")
    assert [row["share"] for row in table.rows] == [0.6] * LAYERS
    assert [row["silent"] for row in table.rows] == [1] * LAYERS
    classes = class_table([model], NAMES, np.array([7, 8, 9]))
    assert classes.rows == [{"class": "adj.all", "words": 8, "model0": 12}]
    nothing = classed(measured.bundle, False, False, 0, shuffled=())
    (said,) = class_statements([nothing], NAMES, "part_of_speech", 0.05)
    assert "prefer words of a class over words of the same part of speech (q <= 0.05). Over all words" in said


def test_the_neurons_with_the_clearest_class_come_first(measured):
    rows = [{"neuron": f"0:{i}", "label": "noun.food", "q": q, "lift": lift, "words": ["a"]}
            for i, (q, lift) in enumerate([(0.01, 2.0), (0.001, 2.0), (0.001, 3.0)])]  # fmt: skip
    table = neuron_table(classed(measured.bundle, True, False, 0), rows, 2)
    assert [row["neuron"] for row in table.rows] == ["0:2", "0:1"]


@pytest.mark.parametrize("any_class", [True, False])
def test_the_figures_have_every_model_also_those_without_a_class(measured, tmp_path, any_class):
    models = [classed(measured.bundle, any_class, False, 2), classed(measured.bundle, False, False, 0)]
    drawings = class_drawings(models, NAMES, "words", 0.05)
    depth, classes = (drawings[name].figure for name in ("labels_depth", "labels_classes"))
    drawn = [line.get_ydata().tolist() for line in depth.axes[0].lines]
    assert drawn == [[100.0 * any_class] * LAYERS, [0.0] * LAYERS]
    assert [text.get_text() for text in classes.axes[0].get_yticklabels()] == (["verb.motion"] if any_class else [])
    bars = [bar.get_width() for bar in classes.axes[0].patches]
    assert bars == ([100.0] if any_class else [])
    result = Result(kind="labels", title="t", statements=[], provenance=["p"], drawings=drawings)
    assert (tmp_path / "out" / "labels_depth.svg") in write_result(result, tmp_path / "out")
