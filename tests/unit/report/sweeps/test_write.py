"""Tables, LaTeX, Parquet and the result that a page shows."""

import csv
import dataclasses
import io

import pyarrow.parquet as pq
import pytest

from tests.unit.report.sweeps.conftest import changed
from topklm.report.result import read_results
from topklm.report.sweeps import group, read_rows, write_sweep
from topklm.report.sweeps.figures import Axis
from topklm.report.sweeps.latex import escape, latex_table
from topklm.report.sweeps.tables import summary_table, tidy_table, write_parquet
from topklm.report.table import Column, Table


def written(runs, out, **kwargs):
    settings = {"name": "k_sweep", "title": "k", "swept": ["topk.k"], "x": None, "log_x": True, **kwargs}
    return write_sweep(runs, out, **settings)


def test_everything_is_written_and_read_again(runs, tmp_path):
    result, paths = written(runs, tmp_path / "out")
    assert all(path.is_file() for path in paths)
    names = {path.name for path in paths}
    assert {"result.json", "perplexity-32.png", "runs.csv", "runs.parquet", "sweep.tex", "sweep.md"} <= names
    (read,) = read_results([tmp_path / "out"])
    assert read.kind == "sweep"
    assert read.statements == list(result.statements)
    said = " ".join(read.statements)
    assert "6 of 8 runs are finished." in said
    assert "topk.k 2: 1.150 times the dense twin's validation perplexity at context 32 (2 seeds" in said
    assert "inconclusive" in said  # two seeds cannot tell 1.15 with a spread of 0.05 from 1
    assert "k32-s1 failed (exit code 4): 50 of 100 steps are saved." in said
    assert "k32-s2 has not begun: 0 of 100 steps are saved." in said


def test_one_row_per_run_in_csv_and_parquet_alike(runs, tmp_path):
    written(runs, tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text())))
    table = pq.read_table(tmp_path / "runs.parquet").to_pylist()
    assert [row["run"] for row in rows] == [row["run"] for row in table] == [run.name for run in runs]
    assert float(rows[2]["val/ppl@32"]) == table[2]["val/ppl@32"] == 120.0
    assert table[2]["val/ppl@32/dense"] == pytest.approx(1.2)
    assert (rows[6]["state"], rows[6]["val/ppl@32"], table[6]["val/ppl@32"]) == ("failed", "", None)
    assert [row["topk.k"] for row in table] == [None, None, 2, 2, 8, 8, 32, 32]


def test_parquet_of_values_of_several_types_is_text(tmp_path):
    rows = [{"a": 1, "b": 1}, {"a": "x", "b": 2.5}, {"a": None, "b": None}, {"a": 0.5, "b": 3}]
    write_parquet(Table("", "", [Column("a", "a"), Column("b", "b")], rows), tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").to_pydict() == {
        "a": ["1", "x", None, "0.5"], "b": [1.0, 2.5, None, 3.0],
    }  # fmt: skip


def test_the_table_over_the_seeds(runs):
    found = read_rows(runs)
    rows = summary_table(group(found.rows), found, ["topk.k"]).rows
    assert [(row["kind"], row["topk.k"], row["seeds"]) for row in rows] == [
        ("dense", None, "2 of 2"), ("TopK", "2", "2 of 2"), ("TopK", "8", "2 of 2"), ("TopK", "32", "0 of 2"),
    ]  # fmt: skip
    assert rows[1]["val/ppl@32"] == pytest.approx(120.5)
    assert rows[1]["val/ppl@32/dense"] == pytest.approx(1.15)
    assert rows[3]["val/ppl@32"] is None
    assert rows[0]["val/ppl@32/dense"] is None


def test_latex_of_the_same(runs):
    found = read_rows(runs)
    text = latex_table(group(found.rows), found, ["topk.k"], "50 % of k_1", "tab:k")
    assert r"\caption{50 \% of k\_1}" in text
    assert r"dense & -- & 2/2 & $105.00 \pm 7.07$ & -- \\" in text
    assert r"TopK & 2 & 2/2 & $120.50 \pm 0.71$ & $1.150 \pm 0.071$ \\" in text
    assert r"TopK & 32 & 0/2 & -- & -- \\" in text
    assert r"\begin{tabular}{llrrr}" in text


def test_latex_escapes_every_character_that_means_something():
    assert escape("a_b & 50% {x} #1 $y ~ ^ \\") == (
        r"a\_b \& 50\% \{x\} \#1 \$y \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


def test_one_seed_says_nothing_of_the_spread(runs, tmp_path):
    result, _ = written([run for run in runs if run.seed == 1], tmp_path)
    assert any("one seed, so nothing is known of the spread" in said for said in result.statements)


def test_nothing_trained_yet_is_a_report_too(runs, tmp_path):
    fresh = runs
    for run in runs:
        fresh = changed(fresh, run.name, path=tmp_path / "nowhere" / run.name, state="new", step=0)
    result, _ = written(fresh, tmp_path / "out")
    assert result.statements[0] == "0 of 8 runs are finished."
    assert not result.drawings
    assert len(tidy_table(read_rows(fresh), ["topk.k"]).rows) == 8


def test_values_that_are_no_numbers_stand_beside_each_other(runs):
    groups = group(read_rows(runs).rows)
    assert Axis(groups, "topk.k", True).places == {"2": 2.0, "8": 8.0, "32": 32.0}
    named = group(read_rows(changed(runs, "k2-s1", swept={"topk.k": "few"})).rows)
    axis = Axis(named, "topk.k", True)
    assert (axis.is_numeric, axis.is_log) == (False, False)
    assert sorted(axis.places.values()) == [0.0, 1.0, 2.0, 3.0]


def test_a_sweep_over_the_steps_shows_those_that_are_done_and_those_that_were_planned(runs, tmp_path):
    swept = [dataclasses.replace(run, swept={**run.swept, "steps": run.steps}) for run in runs]
    written(swept, tmp_path, swept=["topk.k", "steps"])
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text()))}
    assert (rows["k32-s1"]["steps"], rows["k32-s1"]["planned_steps"]) == ("50", "100")
    assert (tmp_path / "runs.csv").read_text().splitlines()[0].split(",").count("steps") == 1
    assert "| 50 | 100 |" in (tmp_path / "sweep.md").read_text()


def test_lists_are_swept_values_too(runs, tmp_path):
    swept = [dataclasses.replace(run, swept={"topk.groups": [run.seed, 2]}) for run in runs]
    written(swept, tmp_path, swept=["topk.groups"])
    row = next(csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text())))
    assert row["topk.groups"] == "[1, 2]"
    assert pq.read_table(tmp_path / "runs.parquet").to_pylist()[0]["topk.groups"] == "[1, 2]"
