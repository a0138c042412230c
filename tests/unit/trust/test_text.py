"""Text of corpora, tokenizers, language models and strangers is shown as it is: no HTML, Markdown or markup of it."""

import io
import json
import re
from html import unescape
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.wrong_inputs.case import Case, run
from tests.unit.wrong_inputs.place import lines
from tests.unit.wrong_inputs.programs import sealed
from topklm.errors import DataError
from topklm.report.page import Section, page
from topklm.report.table import Column, Table, grid, markdown

EVIL = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</svg><b>", '"><i onclick="x">', "&lt;", "[bold]loud",
    "[/]", "[red]", "[link=http://evil]x[/link]", "| a | b |", "`code` *stars* _under_ $x$", "[a](javascript:alert(1))",
    "# heading", "~~gone~~", "\\",
]  # fmt: skip


def table(texts):
    columns = [Column("label", "name <b>[/]"), Column("tokens", "tokens")]
    rows = [{"label": text, "tokens": [text, "x"]} for text in texts]
    return Table("title <i>[/]", "note <u>[/]", columns, rows)


@pytest.mark.parametrize("text", EVIL)
def test_a_page_shows_it_as_text(text):
    """In statements, warnings, headings, folded tables, cells and tokens."""
    section = Section(text, tables=[table([text])], folded=[(text, [table([text])])], statements=[text])
    made = page(text, [text], [text], [section])
    assert set(re.findall(r"<(\w+)", made)) <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "nav", "a", "section", "div", "table",
        "thead", "tbody", "tr", "th", "td", "code", "details", "summary",
    }  # fmt: skip
    assert not re.search(r"\son\w+=", re.sub(r">[^<]*<", "><", made))  # in tags, not in their text
    assert "default-src 'none'" in unescape(made)
    assert unescape(made).count(text) >= 6


@pytest.mark.parametrize("text", EVIL)
def test_a_terminal_shows_it_as_text(text):
    out = io.StringIO()
    Console(file=out, width=200).print(grid(table([text])))
    shown = out.getvalue()
    for expected in (text, "title <i>[/]", "name <b>[/]"):
        assert expected in shown


@pytest.mark.parametrize("text", EVIL)
def test_markdown_shows_it_as_text(text):
    commonmark = pytest.importorskip("markdown_it")
    made = markdown([table([text])], "heading", [text])
    html = commonmark.MarkdownIt("commonmark").enable("table").render(made)
    assert set(re.findall(r"<(\w+)", html)) <= {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td"}
    assert unescape(html).count(text) >= 2


@pytest.mark.parametrize("name", ["[/]", "[bold]x", "<b>"])
def test_names_of_runs_neither_crash_nor_vanish(place, name):
    """A directory and a run may be called as markup is."""
    model = json.loads(Path("bundle/meta.json").read_text())["model"]
    sealed(model={**model, "run": name})
    bundle = f"b{name.replace('/', 'x')}"
    Path("bundle").rename(bundle)
    found = run(Case(mistake="", program="entropy", args=(f"bundle={bundle}",), key="", value="", remedy=""))
    assert found.exit_code == 0, found.log
    assert f"{name}: step 10" in found.log


def test_ids_of_documents_are_told_as_they_are(place, capsys):
    lines({"id": "[/] <b> [red]", "text": 7})
    args = ("config=prepare.yaml", "max_skipped=0.5")
    found = run(Case(mistake="", program="prepare", args=args, key="", value="", remedy=""))
    assert found.exit_code == 0, found.log
    assert '"id": "[/] <b> [red]"' in Path("prepared/web/skipped.jsonl").read_text()


def test_errors_are_not_markup():
    assert str(DataError("[/] <b>")) == "[/] <b>"
