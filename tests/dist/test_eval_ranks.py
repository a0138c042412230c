"""`torchrun ... -m apps.eval`: the figures of one process, for any number of ranks and of requests."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("lm_eval")

from tests.programs import ROOT, run_app, torchrun

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def local_tasks(speeches, tmp_path_factory):
    out = tmp_path_factory.mktemp("tasks")
    subprocess.run(
        [sys.executable, "scripts/make_local_tasks.py", speeches, out, "--limit", "25"], cwd=ROOT, check=True
    )
    return out


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_work_of_any_size_and_none_waits_for_one_that_fails(ranks):
    done = run_app(*torchrun(ranks), "tests.dist.crew_program", timeout=120)
    assert all(f"rank {rank} done" in done.stdout for rank in range(ranks))


def evaluate(ranks, whole, tasks, out, *args):
    start = torchrun(ranks) if ranks > 1 else []
    run_app(
        *start, "apps.eval", f"ckpt={whole}", f"tasks_dir={tasks}",
        "context=64", f"out={out}", "validation={max_tokens: 2000}", *args, env={"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    (directory,) = (out / "evals").iterdir()
    return json.loads((directory / "results.json").read_text()), json.loads((directory / "validation.json").read_text())


def test_ranks_find_what_one_process_finds(whole, local_tasks, tmp_path):
    # 25 passages and 50 sentences in 3 ranks: uneven.
    args = ["harness={tasks: [last_word, minimal_pairs]}"]
    one, validation = evaluate(1, whole, local_tasks, tmp_path / "one", *args)
    three, validation_of_three = evaluate(3, whole, local_tasks, tmp_path / "three", *args)
    assert three["provenance"]["ranks"] == 3
    for task, metrics in one["results"].items():
        for key, value in metrics.items():
            expected = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert three["results"][task][key] == expected, (task, key)
    assert validation_of_three["figures"] == pytest.approx(validation["figures"], rel=1e-5)
    # Fewer requests than ranks.
    few, _ = evaluate(3, whole, local_tasks, tmp_path / "few", "harness={tasks: [last_word], limit: 1}")
    assert few["n-samples"]["last_word"]["effective"] == 1


def test_an_error_on_the_first_rank_ends_all(whole, tmp_path):
    done = run_app(
        *torchrun(2), "apps.eval", f"ckpt={whole}", f"tasks_dir={tmp_path / 'none'}", "harness={tasks: [last_word]}",
        check=None, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "is no directory" in done.stderr
