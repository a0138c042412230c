"""Rows, groups and ratios against values worked out by hand."""

import json
import math

import pytest

from tests.unit.report.conftest import PROVENANCE
from tests.unit.report.evals.synthetic import provenance, write
from tests.unit.report.sweeps.conftest import PERPLEXITIES, changed
from topklm.report.sweeps import group, read_rows

KEY = "val/ppl@32"


def by_name(runs):
    return {row.run.name: row for row in read_rows(runs).rows}


def test_figures_are_those_after_the_last_step(runs):
    rows = by_name(runs)
    assert {name: row.values[KEY] for name, row in rows.items() if row.values} == PERPLEXITIES
    assert rows["dense-s1"].tokens == 12_800
    assert rows["dense-s1"].more["checkpoint"] == "c" * 12


def test_a_run_that_is_not_finished_is_shown_without_figures(runs):
    rows = by_name(runs)
    assert (rows["k32-s1"].values, rows["k32-s1"].ratios) == ({}, {})
    assert rows["k32-s1"].tokens == 6_400
    assert rows["k32-s2"].tokens is None
    assert len(rows) == 8


def test_ratios_are_to_the_twin_of_the_same_seed(runs):
    rows = by_name(runs)
    assert rows["k2-s1"].ratios == {KEY: pytest.approx(1.2)}
    assert rows["k2-s2"].ratios == {KEY: pytest.approx(1.1)}
    assert rows["k8-s2"].ratios == {KEY: pytest.approx(1.02)}
    assert rows["dense-s1"].ratios == {}


def test_no_ratio_where_the_twin_is_not_finished(runs):
    rows = by_name(changed(runs, "dense-s2", state="partial", step=50))
    assert rows["k2-s2"].ratios == {}
    assert rows["k2-s1"].ratios != {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"val/tokens@32": 639}, "validated on different tokens"), ({"val/ppl@32": None}, "is not finite")],
)
def test_what_does_not_compare_is_told(runs, make_run, changes, said):
    odd = make_run("odd", ppl=100.0, provenance=PROVENANCE, **changes)
    found = read_rows(changed(runs, "dense-s1", path=odd))
    rows = {row.run.name: row for row in found.rows}
    assert rows["k2-s1"].ratios == {}
    assert rows["k2-s2"].ratios != {}
    assert any(said in note for note in found.notes)


def test_no_ratio_of_different_training_data(runs):
    path = runs[0].path / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_fingerprint": "a" * 64}))
    found = read_rows(runs)
    assert all(row.ratios == {} for row in found.rows if row.run.twin == "dense-s1")
    assert any("trained on different data" in note for note in found.notes)
    assert "Runs of the same seed were trained on different data." in found.notes


def test_seeds_may_have_other_orders_of_the_samples(runs):
    for run in runs[:-1]:
        path = run.path / "provenance.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "data_fingerprint": f"{run.seed:064}"}))
    assert read_rows(runs).notes == []


def test_a_run_that_did_not_validate_at_its_end_has_no_figures(runs, make_run):
    path = make_run("late", until=95)
    found = read_rows(changed(runs, "k2-s1", path=path))
    assert "k2-s1 has no validation at its last step, 100." in found.notes
    assert next(row for row in found.rows if row.run.name == "k2-s1").values == {}


def test_scores_of_tasks_are_read_at_the_last_step_and_compared_with_the_twins(runs):
    for name, scores in (("dense-s1", [1.0, 1.0, 1.0, 0.0]), ("k2-s1", [1.0, 0.0, 0.0, 0.0])):
        write(runs[0].path.parent, name, provenance(name, step=100), scores=scores)
    write(runs[0].path.parent, "k8-s1", provenance("k8-s1", step=50), scores=[1.0, 0.0])
    found = read_rows(runs)
    rows = {row.run.name: row for row in found.rows}
    assert rows["dense-s1"].values["pick/acc@256"] == 0.75
    assert rows["k2-s1"].differences == {"pick/acc@256": pytest.approx(-0.5)}
    assert "pick/acc@256" not in rows["k8-s1"].values
    assert list(found.scores) == ["pick/acc@256"]


def test_groups_are_means_and_standard_deviations_over_the_seeds(runs):
    groups = group(read_rows(runs).rows)
    assert [one.label for one in groups] == ["dense", "topk.k 2", "topk.k 8", "topk.k 32"]
    assert [(one.finished, one.planned) for one in groups] == [(2, 2), (2, 2), (2, 2), (0, 2)]
    dense, two = groups[:2]
    assert dense.values(KEY).mean == pytest.approx(105.0)
    assert dense.values(KEY).sd == pytest.approx(math.sqrt(50.0))
    assert two.ratios(KEY).mean == pytest.approx(1.15)
    assert two.ratios(KEY).sd == pytest.approx(math.sqrt(0.005))
    assert (groups[3].values(KEY).mean, groups[3].values(KEY).sd) == (None, None)


def test_scores_over_other_documents_are_not_compared(runs):
    for name, scores in (("dense-s1", [1.0, 1.0, 1.0, 0.0]), ("k2-s1", [1.0, 0.0])):
        write(runs[0].path.parent, name, provenance(name, step=100), scores=scores)
    found = read_rows(runs)
    assert next(row for row in found.rows if row.run.name == "k2-s1").differences == {}
    assert any("pick/acc@256" in note for note in found.notes)
