"""`python -m apps.eval` as a user runs it, without a hub: local tasks made of held-out text, on a run of seconds."""

import json
import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("lm_eval")

from apps.eval import main
from tests.programs import ROOT, run_app
from topklm.config import load_config
from topklm.evaluate.app_config import EvalAppConfig
from topklm.evaluate.harness_scoring import Scorer

pytestmark = pytest.mark.e2e
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def local_tasks(speeches, tmp_path_factory):
    out = tmp_path_factory.mktemp("tasks")
    command = [sys.executable, "scripts/make_local_tasks.py", speeches, out, "--limit", "20"]
    subprocess.run(command, cwd=ROOT, check=True)
    return out


@pytest.fixture
def config(tmp_path):
    """A file, because the section harness is null by default and a key in it needs a section."""
    file = tmp_path / "eval.yaml"
    file.write_text("harness: {tasks: [last_word]}\nvalidation: {contexts: [32], max_tokens: 2000}\n")
    return f"config={file}"


@pytest.fixture
def evaluate(whole, local_tasks, config):
    """The program's main function in this process: starting it takes five seconds, and is tested once."""

    def run(*args, tasks="[last_word, minimal_pairs]"):
        given = [config, f"ckpt={whole}", f"tasks_dir={local_tasks}", f"harness.tasks={tasks}", *args]
        return main(load_config(EvalAppConfig, given))

    return run


def results(whole, name="0000000024"):
    return json.loads((whole / "evals" / name / "results.json").read_text())


def test_an_evaluation_its_files_and_its_table(whole, config, local_tasks):
    done = run_app("apps.eval", config, f"ckpt={whole}", f"tasks_dir={local_tasks}",
                   "harness.tasks=[last_word, minimal_pairs]", env=OFFLINE)  # fmt: skip
    for said in ("last_word", "minimal_pairs", "near chance", "val/ppl@32"):
        assert said in done.stdout
    found = results(whole)
    assert set(found["results"]) == {"last_word", "minimal_pairs"}
    provenance = found["provenance"]
    assert (provenance["step"], provenance["alpha"], provenance["context"]) == (24, 0.0, 256)
    assert provenance["checkpoint_sha256"]
    assert provenance["bos"].startswith("BOS before prompts (as trained)")
    assert found["chance"] == {"last_word": 0.0, "minimal_pairs": 0.5}
    lines = (whole / "evals" / "0000000024" / "samples_minimal_pairs.jsonl").read_text().splitlines()
    assert len(lines) == 20
    assert json.loads(lines[0])["arguments"]


def test_the_same_command_again_goes_on_where_it_was(whole, evaluate, capsys, caplog):
    caplog.set_level("INFO", "topklm")
    evaluate()
    found, table = results(whole), capsys.readouterr().out
    evaluate()
    assert "there already" in caplog.text
    assert results(whole) == found  # the date included: nothing was computed
    assert capsys.readouterr().out == table
    evaluate(tasks="[last_word, minimal_pairs, documents]")
    more = results(whole)
    assert set(more["results"]) == {"last_word", "minimal_pairs", "documents"}
    assert more["results"]["last_word"] == found["results"]["last_word"]
    assert more["results"]["documents"]["token_perplexity,none"] > 1
    assert len((whole / "evals" / "0000000024" / "samples_minimal_pairs.jsonl").read_text().splitlines()) == 20
    evaluate("overwrite=true")
    assert results(whole)["date"] != found["date"]
    assert results(whole)["results"] == more["results"]  # what was repeated, and what was not


def test_an_interrupted_evaluation_keeps_the_tasks_that_were_finished(whole, evaluate, monkeypatch, caplog):
    caplog.set_level("INFO", "topklm")
    score, calls = Scorer.score, []

    def interrupted(self, spans, *args):
        calls.append(len(spans))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, spans, *args)

    monkeypatch.setattr(Scorer, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate()
    assert list(results(whole)["results"]) == ["last_word"]
    evaluate()
    assert "there already, repeated with overwrite=true: last_word" in caplog.text
    assert calls == [20, 40, 40]
    assert list(results(whole)["results"]) == ["last_word", "minimal_pairs"]


def test_another_model_and_other_settings_have_a_directory_of_their_own(whole, evaluate):
    for args in ([], ["alpha=1"], ["context=32"], ["harness.limit=5"]):
        evaluate(*args, tasks="[last_word]")
    own, dense = results(whole), results(whole, "0000000024-alpha1.0")
    assert (own["provenance"]["alpha"], dense["provenance"]["alpha"]) == (0.0, 1.0)
    assert own["results"] != dense["results"]
    assert results(whole, "0000000024-context32")["requests"]["last_word"]["cut"] == 20
    assert results(whole, "0000000024-limit5")["n-samples"]["last_word"]["effective"] == 5


def test_changed_documents_are_evaluated_again(whole, evaluate, local_tasks, tmp_path, caplog):
    caplog.set_level("INFO", "topklm")
    tasks = tmp_path / "tasks"
    shutil.copytree(local_tasks, tasks)
    evaluate(f"tasks_dir={tasks}")
    before = results(whole)
    data = tasks / "last_word.jsonl"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:10]))
    evaluate(f"tasks_dir={tasks}")
    assert "there already, repeated with overwrite=true: minimal_pairs" in caplog.text
    after = results(whole)
    assert after["n-samples"]["last_word"]["effective"] == 10
    assert after["results"]["minimal_pairs"] == before["results"]["minimal_pairs"]


def test_what_is_missing_is_named_and_the_rest_runs(whole, evaluate, local_tasks, tmp_path, capsys):
    tasks = tmp_path / "tasks"
    shutil.copytree(local_tasks, tasks)
    (tasks / "minimal_pairs.jsonl").unlink()
    assert evaluate(f"tasks_dir={tasks}", "data_dir=/nowhere") == 3
    said = capsys.readouterr().err
    assert "minimal_pairs was not run: its data cannot be read" in said
    assert str(tasks / "minimal_pairs.jsonl") in said
    assert "validation was not run" in said
    found = results(whole)
    assert list(found["results"]) == ["last_word"]
    assert "minimal_pairs" in found["failed"]


def test_wrong_input_is_told_before_anything_is_loaded(tmp_path):
    done = run_app(
        "apps.eval", "ckpt=", "context=1", "alpha=2", "harness={tasks: [a, a], limt: 3}", "vlidation=null", check=2
    )  # fmt: skip
    for said in ("ckpt: is missing", "context: 1", "alpha: 2", "harness.limt", "did you mean", "vlidation"):
        assert said in done.stderr
    done = run_app("apps.eval", f"ckpt={tmp_path / 'none'}", "harness={tasks: [lambada_openai]}", check=5)
    assert "there is no" in done.stderr
    text = run_app("apps.eval", "--help").stdout
    for key in ("harness.num_fewshot", "validation.stride", "tasks_dir", "compare"):
        assert key in text


def test_several_checkpoints_and_their_comparison(whole, local_tasks, config, tmp_path):
    """Two checkpoints of one run, in a place of their own; then a table of both."""
    steps = [whole / "checkpoints" / f"{step:010d}" for step in (10, 24)]
    out = tmp_path / "out"
    given = [config, f"ckpts=[{steps[0]},{steps[1]}]", f"tasks_dir={local_tasks}", f"out={out}"]
    assert main(load_config(EvalAppConfig, given)) == 0
    made = sorted(out.glob("*/evals/*/results.json"))
    assert [json.loads(path.read_text())["provenance"]["step"] for path in made] == [10, 24]
    done = run_app("apps.eval", "compare", *(path.parent for path in made), f"out={tmp_path / 'table'}")
    assert "last_word" in done.stdout
    assert {".csv", ".md", ".tex"} <= {path.suffix for path in (tmp_path / "table").glob("evaluation.*")}


def test_the_harness_with_transformers_gives_the_same_scores(whole, local_tasks, tmp_path):
    pytest.importorskip("transformers")
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "scripts/check_eval.py", whole, local_tasks, "--json", report], cwd=ROOT, capture_output=True,
        text=True, timeout=300, env={**os.environ, **OFFLINE, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert any(task["cut"] for task in found["fp32"].values())
    for task in found["fp64"].values():
        assert task["largest"] < 1e-8
        assert task["flips"] == task["unexplained"] == []
