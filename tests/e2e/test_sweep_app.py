"""`python -m apps.sweep` as a user runs it: killed, resumed, with a run that fails, and its report."""

import csv
import json
import os
import signal

import pytest
import yaml

from tests.programs import children, metrics, run_app, start_app, wait_for_step

pytestmark = pytest.mark.e2e


@pytest.fixture
def sweep(tiny, tmp_path):
    """A sweep over two k, and a learning rate at which the loss is not finite."""
    base = {}
    for argument in tiny:
        key, _, value = argument.partition("=")
        node = base
        *sections, leaf = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = yaml.safe_load(value)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    settings = {
        "name": "small", "base_config": str(tmp_path / "base.yaml"), "dump_dir": str(tmp_path / "sweep"),
        "runs": [{"topk.k": 4}, {"topk.k": 8}, {"topk.k": 8, "optim.lr": 1.0e30}],
        "run_name": "k{topk.k}-lr{optim.lr}", "figures": {"x": "topk.k"},
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "sweep.yaml"


def test_killed_resumed_with_a_failing_run_and_reported(sweep, whole, tmp_path):
    out = tmp_path / "sweep"
    process = start_app("apps.sweep", f"config={sweep}")
    wait_for_step(out / "k4-lr0.003", 12, process)
    (child,) = children(process.pid)
    process.kill()
    os.kill(child, signal.SIGKILL)
    process.wait()
    process.stderr.close()

    done = run_app("apps.sweep", f"config={sweep}", "max_parallel=2", check=1)
    assert "k4-lr0.003: goes on after step " in done.stderr
    assert "k8-lr1e+30 failed: exit code 4 (a loss or gradient was not finite)" in done.stderr
    assert "1 of 3 runs failed" in done.stderr
    assert "resuming from" in (out / "k4-lr0.003" / "output.log").read_text()
    assert list(metrics(out / "k4-lr0.003")) == list(range(1, 25))
    # A run of a sweep is an ordinary one: to the last bit what apps.train makes of the same configuration.
    assert metrics(out / "k8-lr0.003") == metrics(whole)

    report = run_app("apps.sweep", "report", f"config={sweep}")
    assert "2 of 3 runs are finished." in report.stdout
    rows = {row["run"]: row for row in csv.DictReader((out / "report" / "runs.csv").open())}
    assert {name: row["state"] for name, row in rows.items()} == {
        "k4-lr0.003": "finished", "k8-lr0.003": "finished", "k8-lr1e+30": "failed",
    }  # fmt: skip
    assert float(rows["k8-lr0.003"]["val/ppl@32"]) == metrics(whole, "val/ppl@32")[24]
    assert (out / "report" / "perplexity-32.png").is_file()
    index = json.loads((out / "sweep.json").read_text())
    assert index["runs"][0]["command"] == f"python -m apps.train config={out}/k4-lr0.003/run.yaml"
