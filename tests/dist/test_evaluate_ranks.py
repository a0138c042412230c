"""Evaluation during training leaves no trace in the run, and ranks that share uneven requests find what one does."""

import json

import pytest
import torch

from tests.programs import metrics, run_app, torchrun, weights
from topklm import load_model
from topklm.checkpoint import list_checkpoints
from topklm.evaluate import HarnessConfig, ValidationConfig, marks_for, run_harness, validate_checkpoint
from topklm.report.evals import read_evaluation

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.dist

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{target}}}}"
{choices}metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory):
    """Two tasks of 5 and 7 documents of quite different lengths: no number of ranks gets even parts."""
    root = tmp_path_factory.mktemp("tasks")
    words = ["the union", "of the states", "congress", "and the people of the United States of America", "a"]
    choose = [
        {"text": " ".join(words[: 1 + i % 4]), "choices": [" law", " and the nation at large", " of"], "target": i % 3}
        for i in range(5)
    ]
    last = [{"text": " ".join(words * (1 + 2 * i)), "target": " the"} for i in range(7)]
    for name, kind, lines, choices in (
        ("choose", "multiple_choice", choose, 'doc_to_choice: "{{choices}}"\n'),
        ("last", "loglikelihood", last, ""),
    ):
        (root / f"{name}.yaml").write_text(TASK.format(name=name, kind=kind, choices=choices))
        (root / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def arguments(tiny, tasks_dir):
    evaluation = (
        "eval={every: 4, validation: {contexts: [16, 32], stride: 8, max_tokens: 600}, context: 64, "
        f"tasks_dir: {tasks_dir}, harness: {{tasks: [choose, last], bootstrap_iters: 0}}}}"
    )
    return [*[a for a in tiny if not a.startswith("eval=")], "steps=12", "topk.anneal_steps=6"], evaluation


@pytest.fixture(scope="module", params=[1, 2])
def evaluated(arguments, tmp_path_factory, request):
    """(ranks, a run with evaluations at steps 4, 8 and 12)."""
    common, evaluation = arguments
    run = tmp_path_factory.mktemp("evaluated") / "run"
    run_on(request.param, *common, f"dump_dir={run}", evaluation)
    return request.param, run


def run_on(ranks, *args):
    run_app(*(torchrun(ranks) if ranks > 1 else ()), "apps.train", *args)


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_evaluating_leaves_no_trace_in_the_run(arguments, evaluated, tmp_path):
    ranks, run = evaluated
    plain = tmp_path / "plain"
    run_on(ranks, *arguments[0], f"dump_dir={plain}", "eval=null")
    assert metrics(run) == metrics(plain)
    assert metrics(run, "optim/grad_norm") == metrics(plain, "optim/grad_norm")
    for (name, x), y in zip(weights(run).items(), weights(plain).values(), strict=True):
        assert (x == y).all(), name
    for mine, its in zip(*(list_checkpoints(r / "checkpoints") for r in (run, plain)), strict=True):
        for rank in range(ranks):
            name = f"train_state_{rank:05d}.json"
            assert json.loads((mine / name).read_text()) == json.loads((its / name).read_text())


def test_it_is_in_the_files_of_the_run(evaluated):
    _, run = evaluated
    for step in (4, 8, 12):
        found = read_evaluation(run / "evals" / f"{step:010d}")
        assert found.harness["n-samples"]["last"]["effective"] == 7
        assert found.provenance["step"] == step
        assert found.provenance["alpha"] == metrics(run, "val/alpha")[step]
    lines = read_lines(run / "metrics.eval.jsonl")
    assert [line["global_step"] for line in lines] == [4, 8, 12]
    assert lines[-1]["choose"]["acc,none"] == metrics(run, "eval/choose/acc")[12]
    validated = {
        line["global_step"]: line["val/ppl@32-stride8"] for line in read_lines(run / "metrics.validation.jsonl")
    }
    assert validated == metrics(run, "val/ppl@32-stride8")


def test_ranks_with_parts_of_the_weights_find_what_one_process_with_all_of_them_does(evaluated, speeches, tasks_dir):
    """Request by request, and document by document."""
    _, run = evaluated
    model, tokenizer, config = load_model(run)
    assert config.step == 12
    held_out = validate_checkpoint(
        model, tokenizer, speeches, settings=ValidationConfig(contexts=[16, 32], stride=8, max_tokens=600), context=32,
        batch_size=5, device=torch.device("cpu"),
    )  # fmt: skip
    found = read_evaluation(run)
    for key, value in held_out.figures.items():
        if key.startswith("val/"):
            assert found.figures[key] == pytest.approx(value, rel=1e-6), key
    outcome = run_harness(
        model, tokenizer, HarnessConfig(tasks=["choose", "last"], bootstrap_iters=0), context=64,
        marks=marks_for(tokenizer, config.run), tasks_dir=str(tasks_dir),
    )  # fmt: skip
    for task, n in (("choose", 5), ("last", 7)):
        mine, its = outcome.samples[task], found.samples(task)
        assert [line["doc_id"] for line in mine] == [line["doc_id"] for line in its] == list(range(n))
        for a, b in zip(mine, its, strict=True):
            scores = [[answer[0] for request in line["resps"] for answer in request] for line in (a, b)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert found.harness["results"]["choose"]["acc,none"] == outcome.results["results"]["choose"]["acc,none"]


def test_missing_task_data_are_told_before_training(arguments, tasks_dir, tmp_path):
    common, evaluation = arguments
    broken = tmp_path / "tasks"
    broken.mkdir()
    for path in tasks_dir.glob("*.yaml"):
        (broken / path.name).write_text(path.read_text())
    (broken / "last.jsonl").write_text((tasks_dir / "last.jsonl").read_text())
    evaluation = evaluation.replace(str(tasks_dir), str(broken))
    done = run_app("apps.train", *common, f"dump_dir={tmp_path / 'run'}", evaluation, check=2)
    assert "eval.harness.tasks: choose" in done.stderr
    assert "last:" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()
