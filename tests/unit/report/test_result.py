"""What an analysis writes is what a page shows."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest

from topklm.errors import ConfigError
from topklm.report.figure import framed, house_style
from topklm.report.page import page
from topklm.report.result import Drawing, Result, read_results, write_result
from topklm.report.table import Column, Table


def a_result(**changes) -> Result:
    with house_style():
        figure = framed("Doses", ["model: a, step 5"], 2.0)
        figure.subplots().plot([0, 1], [0, 1])
    table = Table("Rates", "shares", [Column("dose", "dose"), Column("rate", "rate", "{:.1%}")],
                  [{"dose": 8, "rate": 0.25}, {"dose": 9, "rate": float("nan")}])  # fmt: skip
    given = {
        "kind": "steering", "title": "Steering <b>", "statements": ["It rises & falls."],
        "provenance": ["model: a, step 5"], "tables": {"rates": table},
        "drawings": {"dose": Drawing(title="Dose", text="Rate against dose", figure=figure)},
        "data": {"rates": np.array([0.5, np.nan]), "n": np.int64(3)},
    }  # fmt: skip
    return Result(**(given | changes))


def test_what_is_written_is_read(tmp_path):
    files = write_result(a_result(), tmp_path / "out")
    assert {f.name for f in files} == {"result.json", "dose.png", "dose.svg", "rates.csv", "steering.md"}
    assert all(f.is_file() for f in files)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f.name for f in files}
    (found,) = read_results([tmp_path / "out"])
    assert found.data == {"rates": [0.5, None], "n": 3}
    assert found.section.tables[0].rows == [{"dose": 8, "rate": 0.25}, {"dose": 9, "rate": None}]
    html = page("All", [], [], [found.section])
    assert "Steering &lt;b&gt;" in html
    assert "It rises &amp; falls." in html
    assert "<td class=n>25.0%</td>" in html
    assert "Rate against dose" in html
    assert "<svg" in html
    assert (tmp_path / "out/rates.csv").read_text().splitlines()[:2] == ["dose,rate", "8,0.25"]


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    write_result(a_result(), tmp_path / "good")
    (tmp_path / "good/dose.svg").unlink()
    write_result(a_result(), tmp_path / "old")
    content = json.loads((tmp_path / "old/result.json").read_text())
    (tmp_path / "old/result.json").write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(ConfigError) as caught:
        read_results([tmp_path / "good", tmp_path / "old", tmp_path / "none"])
    assert [problem.key for problem in caught.value.problems] == ["results[0]", "results[1]", "results[2]"]
    assert "dose.svg is missing" in str(caught.value)
    assert "99" in str(caught.value)


def test_a_name_in_the_file_does_not_lead_out_of_its_directory(tmp_path):
    write_result(a_result(), tmp_path / "out")
    (tmp_path / "secret.svg").write_text("<svg>secret</svg>")
    content = json.loads((tmp_path / "out/result.json").read_text())
    content["figures"][0]["name"] = "../secret"
    (tmp_path / "out/result.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"secret\.svg is missing"):
        read_results([tmp_path / "out"])


def test_an_old_result_stays_when_the_new_one_cannot_be_written(tmp_path):
    write_result(a_result(), tmp_path)
    before = (tmp_path / "result.json").read_text()
    with pytest.raises(TypeError):
        write_result(a_result(data={"x": object()}), tmp_path)
    assert (tmp_path / "result.json").read_text() == before
    assert not list(tmp_path.glob(".making-*"))


def test_an_interruption_between_two_files_leaves_no_old_result_with_new_figures(tmp_path, monkeypatch):
    write_result(a_result(), tmp_path)
    moved = []

    def interrupted(source, target):
        moved.append(target)
        if len(moved) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr("topklm.report.result.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_result(a_result(title="new"), tmp_path)
    with pytest.raises(ConfigError, match="no readable"):
        read_results([tmp_path])


def test_figures_and_tables_that_the_new_result_does_not_have_go(tmp_path):
    write_result(a_result(), tmp_path / "out")
    (tmp_path / "out/mine.txt").write_text("stays")
    (tmp_path / "outside.csv").write_text("stays")
    content = json.loads((tmp_path / "out/result.json").read_text())
    content["tables"]["../outside"] = content["tables"]["rates"]
    (tmp_path / "out/result.json").write_text(json.dumps(content))
    write_result(a_result(drawings={}, tables={}), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.json", "steering.md", "mine.txt"}
    assert (tmp_path / "outside.csv").exists()
    (tmp_path / "out/result.json").write_text("broken")
    write_result(a_result(), tmp_path / "out")
    write_result(a_result(kind="other", drawings={}), tmp_path / "out")  # of another analysis: stays
    assert (tmp_path / "out/dose.png").exists()


@pytest.mark.parametrize(
    "changes",
    [{"statements": [1]}, {"statements": "text"}, {"title": None}, {"tables": []}, {"tables": {"a": {}}}, {"data": 1},
     {"figures": {"name": "dose"}}, {"provenance": None}],
)  # fmt: skip
def test_what_is_no_result_is_told_and_does_not_break_the_page(tmp_path, changes):
    write_result(a_result(), tmp_path)
    content = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(content | changes))
    with pytest.raises(ConfigError, match="no readable"):
        read_results([tmp_path])


def test_a_file_that_is_no_picture_is_told(tmp_path):
    write_result(a_result(), tmp_path)
    (tmp_path / "dose.svg").write_text("nothing")
    with pytest.raises(ConfigError, match=r"dose\.svg is no SVG"):
        read_results([tmp_path])


def test_the_page_lets_no_script_of_a_picture_run_and_fetches_nothing(tmp_path):
    """Results may be another's: what their pictures hold is inside the page."""
    write_result(a_result(), tmp_path)
    (tmp_path / "dose.svg").write_text("<svg onload='x()'><script>x()</script></svg>")
    html = page("All", [], [], [read_results([tmp_path])[0].section])
    policy = re.search(r'<meta http-equiv=Content-Security-Policy content="([^"]*)">', html)
    assert policy is not None
    assert html.index(policy[0]) < html.index("<style>")
    assert "default-src 'none'" in policy[1]
    assert "script" not in policy[1]
