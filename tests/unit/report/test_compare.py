"""The numbers of the table, and when a run is another's dense twin."""

import csv
import io
import json
import math

import pytest
from rich.console import Console

from tests.unit.report.conftest import BASE, PROVENANCE, TOPK
from topklm.report import compare, read_run, read_runs
from topklm.report.tables import csv_text, markdown, rich_tables
from topklm.report.twins import dense_twin


def rows_of(*paths):
    return compare([read_run(path) for path in paths]).rows


def test_known_numbers(twins):
    dense, sparse = rows_of(*twins)
    assert sparse.ratio == {"32": pytest.approx(100 / 80)}
    assert sparse.twin == "dense"
    assert dense.ratio == {}
    # 20 logged steps: the last tenth is steps 95 and 100.
    assert (dense.loss, dense.loss_points) == (pytest.approx(8 - 0.01 * 97.5), 2)
    # 1001 ... 1019: the first line (1.0) does not count.
    assert dense.tokens_per_second == 1010
    assert (sparse.l0_mean, sparse.dead, sparse.alpha) == (2.5, 0.125, 0)
    assert dense.mfu is None
    assert dense.dead is None


MODEL, DATA = BASE["model"], BASE["data"]


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("steps", {"steps": 200}),
        ("model.dim", {"model": {**MODEL, "dim": 32}}),
        ("data.seq_len", {"data": {**DATA, "seq_len": 64}}),
        ("data.root_dir", {"data": {**DATA, "root_dir": "other/data"}}),
        ("data.root_dir", {"data": {**DATA, "root_dir": "/elsewhere/other"}}),
        ("data.sources", {"data": {**DATA, "sources": {"a": 1.0, "b": 1.0}}}),
        ("distributed.model_dtype", {"distributed": {"model_dtype": "fp16"}}),
        ("checkpoint.init_ckpt_path", {"checkpoint": {"init_ckpt_path": "some/checkpoint"}}),
    ],
)
def test_every_different_setting_that_matters_undoes_a_twin_and_is_named(make_run, key, config):
    same = {"distributed": {"model_dtype": "bf16", "compile": True}}
    sparse = read_run(make_run("sparse", topk=TOPK, config=same))
    dense = read_run(make_run("dense", config={**same, **config}))
    assert dense_twin(sparse, [sparse, dense]) is None
    (note,) = [note for note in compare([dense, sparse]).notes if "no dense twin" in note]
    assert f"dense differs in {key}." in note


@pytest.mark.parametrize(
    "config",
    [
        {"model": {**MODEL, "loss_chunk": 8, "max_seqlen": 2048}},
        {"data": {**DATA, "batch_size": 1, "verify": True, "load_async": False, "prefetch_size": 1}},
        {"data": {**DATA, "root_dir": "./data"}},
        {"data": {**DATA, "root_dir": "/somewhere/data"}},
        {"data": {**DATA, "sources": {"a": 7}}},
        {"distributed": {"compile": True}, "checkpoint": {"init_ckpt_path": None}},
    ],
)
def test_what_changes_neither_batches_nor_results_leaves_twins(make_run, config):
    sparse, dense = read_run(make_run("sparse", topk=TOPK)), read_run(make_run("dense", config=config))
    assert dense_twin(sparse, [sparse, dense]) is dense
    assert dense_twin(dense, [sparse, dense]) is None


def test_the_data_themselves_decide_where_they_are_known(make_run):
    moved = {"data": {**DATA, "root_dir": "/another/place"}}
    sparse = read_run(make_run("sparse", topk=TOPK, provenance=PROVENANCE))
    dense = read_run(make_run("dense", config=moved, provenance=PROVENANCE))
    other = read_run(make_run("other", provenance={**PROVENANCE, "data_fingerprint": "f" * 64}))
    unknown = read_run(make_run("unknown"))
    assert dense_twin(sparse, [sparse, dense, other]) is dense
    assert dense_twin(sparse, [sparse, unknown]) is unknown
    (note,) = compare([sparse, other]).notes
    assert "other differs in data fingerprint" in note


def test_a_missing_twin_is_explained(make_run):
    sparse, dense = read_run(make_run("sparse", topk=TOPK)), read_run(make_run("dense"))
    (note,) = compare([sparse]).notes
    assert "no dense run" in note
    (note,) = compare([sparse, dense, read_run(make_run("again"))]).notes
    assert "dense, again fit equally" in note
    far = {"steps": 200, "model": {**MODEL, "dim": 1, "n_layers": 1, "seed": 1}, "data": {**DATA, "seq_len": 1}}
    notes = compare([sparse, read_run(make_run("far", config=far))]).notes
    assert any(note.endswith("far differs in steps, model.dim, model.n_layers and 2 more.") for note in notes)


def test_what_a_run_recorded_of_itself_is_shown(make_run):
    comparison = compare([read_run(make_run("new", provenance=PROVENANCE)), read_run(make_run("old"))])
    new, old = csv.DictReader(io.StringIO(csv_text(comparison)))
    assert float(new["parameters_m"]) == 123.456789
    assert (new["data_fingerprint"], new["tokenizer"]) == ("d" * 12, "e" * 12)
    assert (new["device"], new["ranks"], new["torch"]) == ("NVIDIA H200", "8", "2.11.0")
    assert {old[key] for key in ("parameters_m", "data_fingerprint", "tokenizer", "device", "ranks", "torch")} == {""}
    page = markdown(comparison)
    for part in ("123.46", "d" * 12, "NVIDIA H200", "2.11.0", "| - | - |"):
        assert part in page


def test_of_several_dense_runs_only_one_of_the_same_recipe_is_the_twin(make_run):
    sparse, dense = read_run(make_run("sparse", topk=TOPK)), read_run(make_run("dense"))
    faster = read_run(make_run("faster", config={"optim": {"lr": 1.0}}))
    assert dense_twin(sparse, [dense, faster, sparse]) is dense
    assert dense_twin(sparse, [dense, read_run(make_run("again")), sparse]) is None
    comparison = compare([faster, sparse])
    assert comparison.rows[1].twin == "faster"
    assert any("differ in seed or optimiser" in note for note in comparison.notes)


def test_no_ratio_between_different_steps_or_tokens(make_run):
    dense = make_run("dense")
    early = make_run("early", topk=TOPK, until=75)
    fewer = make_run("fewer", topk=TOPK, **{"val/tokens@32": 320})
    comparison = compare([read_run(path) for path in (dense, early, fewer)])
    assert [row.ratio for row in comparison.rows] == [{}, {}, {}]
    notes = "\n".join(comparison.notes)
    assert "early was last validated at step 50" in notes
    assert "early has done 75 of 100 steps" in notes
    assert "fewer and dense were validated on different tokens at 32" in notes


def test_annealing_missing_validation_and_divergence_are_told(make_run):
    annealing = make_run("annealing", topk=TOPK, **{"val/alpha": 0.25})
    unvalidated = make_run("unvalidated", validate=False)
    diverged = make_run("diverged", **{"val/ppl@32": None})
    with (diverged / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"global_step": 100, "loss/out": None, "optim/total_tokens": 12800}) + "\n")
    comparison = compare([read_run(path) for path in (annealing, unvalidated, diverged)])
    assert math.isnan(comparison.rows[2].loss)
    assert math.isnan(comparison.rows[2].perplexity["32"])
    notes = "\n".join(comparison.notes)
    assert "annealing is still annealing (alpha 0.25)" in notes
    assert "diverged: the training loss was not finite" in notes
    lines = markdown(comparison).splitlines()
    assert "| - | - |" in next(line for line in lines if line.startswith("| unvalidated"))
    assert "not finite" in next(line for line in lines if line.startswith("| diverged"))


def test_markdown_csv_and_terminal_hold_results_and_provenance(twins):
    comparison = compare(read_runs(twins))
    page = markdown(comparison)
    console = Console(record=True, width=400, file=io.StringIO())
    console.print(rich_tables(comparison))
    for text in (page, console.export_text()):
        for part in (str(twins[0]), str(twins[1]), "12,800", "640", "42", "1.250", "12.50%", "MFU"):
            assert (part in text) == (part != "MFU")
    dense, sparse = csv.DictReader(io.StringIO(csv_text(comparison)))
    assert float(sparse["val_ppl_ratio@32"]) == 1.25
    assert dense["val_ppl_ratio@32"] == ""
    assert (sparse["path"], sparse["steps"], sparse["training_tokens"]) == (str(twins[1]), "100", "12800")
    assert (sparse["val_tokens@32"], sparse["seed"], sparse["dense_twin"]) == ("640.0", "42", "dense")


def test_markdown_rows_are_complete_tables(twins):
    tables = [part for part in markdown(compare(read_runs(twins))).split("\n\n") if part.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_many_runs_stand_below_each_other(make_run):
    comparison = compare([read_run(make_run(f"run{i}")) for i in range(6)])
    console = Console(record=True, width=300, file=io.StringIO())
    console.print(rich_tables(comparison))
    lines = console.export_text().splitlines()
    assert not any("run0" in line and "run1" in line for line in lines)
    assert sum("run5" in line for line in lines) == 2


def test_different_tokenizers_are_told(make_run):
    runs = [make_run(name, provenance={**PROVENANCE, "tokenizer_sha256": name * 64}) for name in "ab"]
    assert any("different tokenizers" in note for note in compare(read_runs(runs)).notes)
    same = [make_run(name, provenance=PROVENANCE) for name in "cd"]
    assert not any("different tokenizers" in note for note in compare(read_runs(same)).notes)
