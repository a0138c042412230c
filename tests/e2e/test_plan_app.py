"""Planning as a user does it: a run that fits, one that does not, one that is wrong."""

import json

import pytest

from tests.programs import run_app

pytestmark = pytest.mark.e2e
PAPER = "config=configs/paper/topk_d2048_l24.yaml"


def test_a_plan_with_its_files(tmp_path):
    done = run_app("apps.plan", PAPER, "gpus=8", "gpu=h200", f"out={tmp_path / 'plan'}", "dump_dir=/nowhere/at/all")
    assert "topk_d2048_l24 fits on 8 h200" in done.stdout
    assert "949.1 M" in done.stdout
    plan = json.loads((tmp_path / "plan" / "result.json").read_text())
    assert plan["kind"] == "plan"
    assert plan["data"]["setting"]["micro_batches"] == 4
    for name in ("plan.md", "memory.png", "memory.svg", "memory.csv"):
        assert (tmp_path / "plan" / name).stat().st_size > 100


def test_what_does_not_fit_is_told_with_what_would():
    done = run_app("apps.plan", PAPER, "gpu=l4", check=1)
    assert "does NOT fit" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("It fits with ")]
    assert lines
    change = lines[0].removeprefix("It fits with ").split(" (")[0].split()
    assert "fits on" in run_app("apps.plan", PAPER, "gpu=l4", *change).stdout


def test_mistakes_are_told_at_once():
    done = run_app("apps.plan", PAPER, "gpu=h2000", "mfu=45", "modle.dim=3", check=2)
    for told in ("gpu: 'h2000'", "mfu: 45.0", "did you mean model"):
        assert told in done.stderr
    assert "Traceback" not in done.stderr
