"""`python -m apps.trace` as a user runs it."""

import json

import pytest

from tests.programs import run_app

pytestmark = pytest.mark.e2e


def test_histories_of_a_run(whole, tmp_path):
    collect = ("apps.collect", f"ckpt={whole}", "tokens=2k", "top_contexts=2", "sample_contexts=1")
    run_app(*collect, "ckpts=[5,10,24]")
    run_app(*collect, "init=random", "snapshots=[]", "halves=false")
    done = run_app("apps.trace", f"run={whole}", "token= the", "min_count=4", f"out={tmp_path / 'trace'}")
    assert "dimension" in done.stdout
    assert "no bundle of step 15, 20; collect with: python -m apps.collect" in done.stdout
    content = json.loads((tmp_path / "trace" / "result.json").read_text())
    assert content["data"]["text"] == " the"
    assert content["data"]["histories"][0]["steps"] == [5, 10, 24]
    assert (tmp_path / "trace" / "trace.png").stat().st_size > 10_000
    out = f"out={tmp_path / 'match'}"
    done = run_app("apps.trace", "match", whole / "bundles", "min_count=4", out)
    assert "At initial weights" in done.stdout
    points = json.loads((tmp_path / "match" / "result.json").read_text())["data"]["points"]
    pairs = {(p["step"], p["to_step"]) for p in points if p["comparison"] == "next checkpoint"}
    assert pairs == {(5, 10), (10, 24)}
    done = run_app("apps.trace", "persistence", whole / "bundles", f"out={tmp_path / 'persistence'}")
    assert "without a break" in done.stdout
    survival = json.loads((tmp_path / "persistence" / "result.json").read_text())["data"]["survival"]
    assert {p["depth"] for p in survival if p["start"] == 0} == {0, 1, 2, 3}
