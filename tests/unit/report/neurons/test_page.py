"""The files of the report: complete, self-contained, and safe against what stands in a vocabulary."""

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.report.neurons.conftest import VOCAB, Planter
from topklm.report.neurons import read_measured, write_neurons
from topklm.report.neurons.tables import layer_table, neuron_tables
from topklm.report.neurons.tokens import top_tokens, visible


class Reader(HTMLParser):
    """What a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.ids, self.pieces, self._in = [], [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._in = tag
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.references.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_data(self, data):
        if self._in == "code":
            self.pieces.append(data)

    def handle_endtag(self, tag):
        self._in = None


@pytest.fixture(scope="module")
def written(family, tmp_path_factory):
    plant = Planter(family[0].parent)
    checkpoints = [plant("topk-25", step=25, alpha=0.5), plant("topk-25-0", step=25)]
    measured = read_measured([*family, *checkpoints])
    out = tmp_path_factory.mktemp("report")
    return measured, out, write_neurons(measured, out)


def test_everything_is_written_and_the_page_stands_alone(written):
    measured, out, paths = written
    names = {path.name for path in paths}
    stems = {"entropy_depth", "entropy_training", "density", "silent", "convergence"}
    assert {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")} <= names
    assert {"index.html", "neurons.md", "neurons.csv", "layers.csv", "bundles.csv"} <= names
    assert {path.name for path in out.iterdir()} == names
    text = (out / "index.html").read_text()
    page = Reader(text)
    assert page.tags.count("svg") == 5
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    for reference in page.references:
        assert reference.startswith(("#", "data:")), reference
        assert not reference.startswith("#") or reference[1:] in page.ids
    assert not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert "prefers-color-scheme: dark" in text
    for each in measured:
        assert each.bundle.sha256[:12] in text
    assert "is more selective than its dense twin" in text


def test_pieces_are_text(written):
    _, out, _ = written
    text = (out / "index.html").read_text()
    assert "</script><b>" not in text
    pieces = Reader(text).pieces
    assert "</script><b>" in pieces
    assert "a\\nb" in pieces
    assert "\u202e" not in text
    markdown = (out / "neurons.md").read_text()
    assert "\\|x\\|" in markdown


def test_neurons_csv(written):
    rows = list(csv.DictReader(io.StringIO((written[1] / "neurons.csv").read_text())))
    assert {row["table"] for row in rows if row["table"].startswith("topk")} == {
        "topk: Most selective", "topk: Most generic", "topk: Most coherent",
    }  # fmt: skip
    first = next(row for row in rows if row["table"] == "topk: Most selective")
    assert float(first["token_entropy"]) == pytest.approx(0.9)


def test_figures_of_an_earlier_report_go(family, tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    (out / "entropy_training.png").write_bytes(b"old")
    (out / "mine.txt").write_text("stays")
    write_neurons(read_measured(family[:1]), out)
    assert not (out / "entropy_training.png").exists()
    assert (out / "mine.txt").exists()


def test_rankings(plant):
    (each,) = read_measured([plant("a")])
    selective, generic, coherent, silent = neuron_tables(each)
    assert [row["neuron"] for row in selective.rows[:2]] == [2, 4]
    assert {row["neuron"] % 2 for row in generic.rows} == {1}
    assert coherent.rows[0]["neuron"] == 5  # the smallest q
    assert [row["neurons"] for row in silent.rows] == ["0"] * 4


def test_neurons_that_fired_rarely_are_not_ranked(plant):
    (each,) = read_measured([plant("a", fired=99)])
    selective, generic, coherent, _ = neuron_tables(each)
    assert selective.rows == generic.rows == coherent.rows == []
    assert "(20 fired on fewer)" in selective.note


def test_layer_table_has_every_layer_of_every_reading(family):
    assert len(layer_table(read_measured(family)).rows) == 5 * 4


def test_top_tokens_are_the_largest_means(plant):
    (each,) = read_measured([plant("a")])
    bundle = each.bundle
    sums = bundle.layer(3).table("sum").dense(VOCAB)
    best = [v for v in range(VOCAB) if bundle.counts[v] >= 3 and sums[v, 2] > 0]
    best.sort(key=lambda v: -sums[v, 2] / bundle.counts[v])
    assert top_tokens(bundle, [(3, 2)], 3, 3)[3, 2] == [visible(bundle.tokens[v]) for v in best[:3]]


@given(st.text())
def test_visible_is_one_line_and_tells_pieces_apart(piece):
    text = visible(piece)
    assert text.isprintable()
    assert text.strip() == text
    undone = re.sub(r"^\u2423+|\u2423+$", lambda m: " " * len(m[0]), text)
    if "\u2423" not in piece:
        codes = r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))"
        plain = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
        undone = re.sub(codes, lambda m: plain[m[4]] if m[4] else chr(int(m[1] or m[2] or m[3], 16)), undone)
        assert undone == piece


def test_bytes_of_a_vocabulary_are_escapes():
    assert [visible(piece) for piece in ("<0x0A>", "<0xE2>", "<0x41>", "<s>")] == ["\\n", "\\xe2", "\\x41", "<s>"]


def test_what_was_forced_stands_on_the_page(plant, tmp_path):
    paths = [plant("one"), plant("two", run="dense", windows="x" * 64)]
    write_neurons(read_measured(paths, force=True), tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "<p class=warns>Shown side by side by force" in text
    assert "differ in the windows that were read" in text
