"""`python -m apps.ablate` as a user runs it."""

import csv
import json

import pytest

from tests.programs import run_app
from topklm.report.result import read_results

pytestmark = pytest.mark.e2e


def test_neurons_are_removed_and_the_report_shows_it(whole, tmp_path):
    bundle, out = tmp_path / "bundle", tmp_path / "ablation"
    run_app("apps.collect", f"ckpt={whole}", "tokens=4k", f"out={bundle}")
    refused = run_app("apps.ablate", f"ckpt={whole}", f"bundle={bundle}", "neurons=[9:1]", f"out={out}", check=2)
    assert "9:1: the model has layers 0 ... 3" in refused.stderr
    settings = (f"ckpt={whole}", f"bundle={bundle}", "layers=[0,3]", "n=2", "controls=2", "tokens=512", f"out={out}")
    done = run_app("apps.ablate", *settings)
    assert "4 neurons removed, place empty" in done.stdout
    assert "2 neurons removed, next in rank enters" in done.stdout
    data = json.loads((out / "result.json").read_text())["data"]
    assert len(data["neurons"]) == 4
    with (out / "effects_overall.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["variant"] for row in rows} == {"zero", "refill", "mean"}
    assert all(float(row["low"]) <= float(row["effect"]) <= float(row["high"]) for row in rows)
    (out / "result.json").unlink()
    again = run_app("apps.ablate", *settings)  # nothing is measured twice, and the same comes out
    assert again.stdout == done.stdout
    (shown,) = read_results([out])
    assert shown.section.title == "Ablation of neurons"
    assert [picture.title for picture in shown.section.pictures] == [
        "Loss without a neuron", "Gradient times activation against removal",
    ]  # fmt: skip
