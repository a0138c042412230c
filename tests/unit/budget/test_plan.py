"""The whole plan: where the vocabulary comes from, what it warns of, how it reads."""

import dataclasses

import pytest

from tests.unit.budget import pages
from topklm.budget import PlanConfig, make_plan, page
from topklm.budget.gpus import find_gpu
from topklm.config import load_config
from topklm.errors import ConfigError
from topklm.report.result import Result, read_results, write_result
from topklm.report.table import grid

PAPER = f"config={pages.PAPER}/topk_d2048_l24.yaml"


def plan_of(*args):
    return make_plan(load_config(PlanConfig, [PAPER, *args]))


@pytest.mark.parametrize("name", ["plan", "scaling"])
def test_the_pages_are_those_of_the_planner(name):
    told = pages.page(name) == (pages.ROOT / "docs" / f"{name}.md").read_text()
    assert told, "the tables are stale: python -m tests.unit.budget.pages"


def test_every_configuration_of_the_paper_is_on_the_page():
    text = (pages.ROOT / "docs" / "plan.md").read_text()
    for file in pages.PAPER.glob("*_d*.yaml"):
        assert f"| `{file.stem}` |" in text


def test_the_vocabulary_of_prepared_data(speeches):
    args = [f"data.root_dir={speeches}", "data.sources={sotu: 1.0}", "data.seq_len=32", "model.vocab_size=-1"]
    plan = plan_of(*args, "vocab_size=77")
    assert plan.setting.model.vocab_size == 512  # what the data have, not what was supposed
    assert plan.epochs > 0


def test_the_vocabulary_without_data():
    assert plan_of("model.vocab_size=-1", "vocab_size=1000").parameters["embedding"] == 1000 * 2048
    assert plan_of().parameters["embedding"] == 32000 * 2048
    with pytest.raises(ConfigError, match="vocab_size: is not known"):
        plan_of("model.vocab_size=-1")


def test_the_parts_are_the_parameters():
    plan = plan_of()
    assert sum(plan.parameters.values()) == plan.setting.model.n_params
    tied = plan_of("model.weight_tying=true")
    assert sum(tied.parameters.values()) == tied.setting.model.n_params


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "4 micro-batches a step"),
        (["steps=100"], "ends in its warm-up of 2,000"),
        (["steps=5000"], "warm-up of 2,000 steps is 40% of the run"),
        (["topk.anneal_ratio=1.0"], "no step is trained at alpha = 0"),
        (["topk.anneal_ratio=0.9"], "Only 2,000 of 20,000 steps"),
        (["topk.anneal_ratio=0.05"], "in the warm-up"),
        (["topk.anneal_ratio=0"], "no annealing"),
        (["data.batch_size=24"], "3% of what is computed is padding"),
        (["data.global_batch_size=4"], "50% of what is computed is padding"),
        (["checkpoint.async_save=false", "checkpoint.dump.every=2"], "checkpoint.async_save=true"),
        (["disk_gbps=0.01"], "longer than the 16.0 minutes between"),
        (["nodes=64"], "the MFU is below"),
        (["nodes=32", "gpu=l40s"], "the MFU is below"),  # through PCIe
        (["distributed.model_dtype=fp32"], "in fp32"),
        (["model.backend=lingua"], "Lingua's blocks"),
        (["model.dim=64", "data.global_batch_size=8", "data.batch_size=1"], "launching its kernels"),
    ],
)
def test_what_looks_odd_is_said(args, told):
    assert any(told in note for note in plan_of(*args).notes)
    assert not any(told in note for note in plan_of("data.batch_size=64").notes)


def test_gpus():
    assert find_gpu("H200").memory == 140.4 * 2**30
    assert find_gpu("mine", 24, 100).peak == 100e12
    assert find_gpu("h100", gib=40).memory == 40 * 2**30
    assert [find_gpu(name).link for name in ("h200", "a100-40", "l4")] == [450e9, 300e9, 32e9]
    assert find_gpu("mine", 24, 100).link == find_gpu("l4").link  # nothing says that it has NVLink
    assert find_gpu("mine", 24, 100, 200).link == 200e9
    with pytest.raises(ConfigError, match="give gpu_gib and gpu_tflops too"):
        find_gpu("mine", gib=24)


def test_a_vocabulary_that_would_not_be_used_is_refused():
    with pytest.raises(ConfigError, match="vocab_size: 128000 is not the 32000"):
        plan_of("vocab_size=128000")


def test_how_often_it_saves():
    assert any("one every 16.0 minutes" in row["of"] for row in page.run_table(plan_of()).rows)


@pytest.mark.parametrize(
    ("key", "value"),
    [("gpus", 0), ("gpu_link_gbps", 0.0), ("mfu", 1.2), ("slack", -1.0), ("disk_gbps", 0.0), ("gpu", "x")],
)
def test_what_is_wrong_is_told(key, value):
    config = dataclasses.replace(load_config(PlanConfig, [PAPER]), **{key: value})
    assert [problem.key for problem in config.problems()] == [key]


def test_the_files_and_what_is_shown(tmp_path):
    pytest.importorskip("matplotlib")
    from rich.console import Console

    from topklm.report.budget import memory_drawing

    plan = plan_of("gpu=a100-40", "nodes=2")
    tables, said = page.tables(plan), page.statements(plan)
    bars = {mode.name: mode.peak.in_gib() for mode in plan.modes}
    drawing = memory_drawing(plan.name, bars, 39.5, page.provenance(plan))
    write_result(
        Result(
            kind="plan", title="x", statements=said, provenance=page.provenance(plan), tables=tables,
            drawings={"memory": drawing}, data=page.data(plan),
        ),
        tmp_path,
    )  # fmt: skip
    (read,) = read_results([tmp_path])
    assert read.data["course"]["hours"] == plan.course.hours
    assert sum(read.data["modes"][0]["peak"][part] for part in ("weights", "loss")) > 0
    console = Console(width=140, record=True, file=(tmp_path / "shown").open("w"))
    for table in tables.values():
        console.print(grid(table))
    shown = console.export_text()
    assert "none (configured)" in shown
    assert "2 x 8 a100-40" in shown
    assert ("fits" in said[0]) == plan.fits
    assert ("does NOT fit" in said[0]) != plan.fits
