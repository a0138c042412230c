"""What an analysis writes is what a page shows."""

from __future__ import annotations

import json

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
