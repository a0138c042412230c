"""Running the harness on a model: what comes out, what is left alone, what is answered from a cache."""

import json
import random

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval")

from tests.unit.evaluate.tiny_lm import TOKENIZER, brute_force, tiny_model, words
from topklm.errors import ConfigError
from topklm.evaluate import harness
from topklm.evaluate.harness import run_harness, work_of
from topklm.evaluate.harness_config import HarnessConfig
from topklm.evaluate.harness_marks import marks_for
from topklm.generate import SamplingConfig
from topklm.sparsity import set_alpha

BOS = 256
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl, train: {name}.jsonl}}}}
test_split: test
training_split: train
output_type: {kind}
{form}
"""
FORMS = {
    "choice": (
        "multiple_choice",
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{gold}}"',
    ),
    "last": ("loglikelihood", 'doc_to_text: "{{question}}"\ndoc_to_target: " {{choices[0]}}"'),
    "rolling": ("loglikelihood_rolling", 'doc_to_text: ""\ndoc_to_target: "{{question}}"'),
    "write": (
        "generate_until",
        'doc_to_text: "{{question}}"\ndoc_to_target: "{{choices[0]}}"\n'
        "generation_kwargs: {until: ['.'], max_gen_toks: 5}\nmetric_list: [{metric: exact_match, aggregation: mean}]",
    ),
}
METRICS = {
    "choice": "metric_list: [{metric: acc, aggregation: mean}, {metric: acc_norm, aggregation: mean}]",
    "last": "metric_list: [{metric: perplexity, aggregation: perplexity}, {metric: acc, aggregation: mean}]",
    "rolling": "metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]",
    "write": "",
}
DOCUMENTS = [
    {"question": words(i, 4 + i), "choices": [words(100 + i, 1), words(200 + i, 2), words(300 + i, 1)], "gold": i % 3}
    for i in range(9)
]


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tasks")
    for name, (kind, form) in FORMS.items():
        (directory / f"{name}.yaml").write_text(TASK.format(name=name, kind=kind, form=f"{form}\n{METRICS[name]}"))
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in DOCUMENTS))
    return str(directory)


def evaluate(tasks_dir, *tasks, model=None, context=128, **settings):
    model = tiny_model() if model is None else model
    config = HarnessConfig(tasks=list(tasks), **settings)
    return run_harness(model, TOKENIZER, config, context=context, marks=marks_for(TOKENIZER, {}), tasks_dir=tasks_dir)


def ids(text):
    return list(text.encode())


def test_figures_are_those_of_a_computation_by_hand(tasks_dir):
    model = tiny_model()
    outcome = evaluate(tasks_dir, *FORMS, model=model)
    assert outcome.failed == {}
    results = outcome.results["results"]

    def score(prompt, answer):
        return brute_force(model, [BOS, *ids(prompt), *ids(answer)], len(ids(answer)))

    right = []
    for one in DOCUMENTS:
        by_choice = [score(one["question"], f" {choice}")[0] for choice in one["choices"]]
        right.append(int(np.argmax(by_choice)) == one["gold"])
    assert results["choice"]["acc,none"] == pytest.approx(np.mean(right))
    assert results["choice"]["acc_stderr,none"] == pytest.approx(np.std(right, ddof=1) / 3)
    last = [score(one["question"], f" {one['choices'][0]}")[0] for one in DOCUMENTS]
    assert results["last"]["perplexity,none"] == pytest.approx(np.exp(-np.mean(last)))
    rolling = [score("", one["question"])[0] for one in DOCUMENTS]
    n_bytes = sum(len(ids(one["question"])) for one in DOCUMENTS)
    assert results["rolling"]["token_perplexity,none"] == pytest.approx(np.exp(-sum(rolling) / n_bytes))
    assert results["rolling"]["byte_perplexity,none"] == pytest.approx(results["rolling"]["token_perplexity,none"])
    assert results["rolling"]["token_perplexity_stderr,none"] == pytest.approx(
        results["rolling"]["byte_perplexity_stderr,none"]
    )
    assert outcome.results["chance"] == {"choice": pytest.approx(1 / 3), "last": 0.0, "rolling": None, "write": None}
    assert outcome.results["requests"]["choice"]["n"] == 27
    assert outcome.results["requests"]["rolling"] == {"n": 9, "scored_tokens": n_bytes, "cut": 0}
    assert outcome.results["near_chance"]["last"] == ["acc,none"]
    assert len(outcome.samples["choice"]) == 9
    json.dumps(outcome.results, default=str)


def test_a_limit_and_solved_examples(tasks_dir):
    outcome = evaluate(tasks_dir, "choice", limit=4, num_fewshot=2)
    assert outcome.results["n-samples"]["choice"] == {"original": 9, "effective": 4}
    assert outcome.results["n-shot"]["choice"] == 2
    prompt = outcome.samples["choice"][0]["arguments"][0][0]
    assert prompt.count("\n\n") == 2
    again = evaluate(tasks_dir, "choice", limit=4, num_fewshot=2)
    assert [s["arguments"] for s in again.samples["choice"]] == [s["arguments"] for s in outcome.samples["choice"]]
    other = evaluate(tasks_dir, "choice", limit=4, num_fewshot=2, fewshot_random_seed=5)
    assert [s["arguments"] for s in other.samples["choice"]] != [s["arguments"] for s in outcome.samples["choice"]]


def test_long_prompts_are_cut_and_counted(tasks_dir, caplog):
    outcome = evaluate(tasks_dir, "choice", context=30)
    assert 0 < outcome.results["requests"]["choice"]["cut"] < 27
    assert "were cut on the left" in caplog.text


def test_neither_random_state_nor_mode_changes(tasks_dir):
    model = tiny_model().train()
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    expected = (random.random(), np.random.random(), torch.rand(1).item())
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    evaluate(tasks_dir, "choice", "write", model=model, gen_kwargs={"temperature": 1.0})
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
    assert model.training


def test_what_cannot_run_is_told_and_the_others_do(tasks_dir):
    outcome = evaluate(tasks_dir, "write", "choice", gen_kwargs={"max_gen_toks": 128})
    assert list(outcome.failed) == ["write"]
    assert "max_gen_toks" in outcome.failed["write"]
    assert list(outcome.results["results"]) == ["choice"]


def test_generation_settings_replace_the_tasks_own(tasks_dir):
    outcome = evaluate(tasks_dir, "write", gen_kwargs="max_gen_toks=1")
    assert all(len(ids(s["filtered_resps"][0])) <= 3 for s in outcome.samples["write"])


def test_sampled_text_depends_on_the_seed(tasks_dir):
    texts = []
    for seed in (1, 1, 2):
        outcome = evaluate(tasks_dir, "write", gen_kwargs={"temperature": 1.0}, torch_random_seed=seed)
        texts.append([sample["resps"] for sample in outcome.samples["write"]])
    assert texts[0] == texts[1] != texts[2]


def test_sampled_text_does_not_depend_on_the_number_of_ranks():
    """A crew shares prompts out with their numbers."""
    work = work_of(tiny_model(), TOKENIZER, None)["generate"]
    prompts = [(number, TOKENIZER.encode("ab")) for number in range(5)]
    settings = (SamplingConfig(max_tokens=6, temperature=1.0), 32)
    whole = work(prompts, settings, None)
    assert len(set(whole)) > 1  # the same prompt, other numbers
    assert [work(prompts[rank::2], settings, None) for rank in (0, 1)] == [whole[0::2], whole[1::2]]


def test_cached_answers_are_not_computed_again_and_not_given_to_another_model(tasks_dir, tmp_path, monkeypatch):
    model = tiny_model()
    settings = {"use_cache": str(tmp_path / "answers"), "model": model}
    first = evaluate(tasks_dir, "choice", "rolling", **settings)
    asked = []
    scorer = harness.Scorer.score
    monkeypatch.setattr(
        harness.Scorer, "score", lambda self, spans, *a: asked.append(len(spans)) or scorer(self, spans, *a)
    )
    again = evaluate(tasks_dir, "choice", "rolling", **settings)
    assert asked == []
    assert again.results["results"] == first.results["results"]
    set_alpha(model, 0.5)
    other = evaluate(tasks_dir, "choice", "rolling", **settings)
    assert sum(asked) > 0
    assert other.results["results"] != first.results["results"]


def test_what_was_found_is_handed_over_after_each_task(tasks_dir):
    seen = []
    run_harness(
        tiny_model(), TOKENIZER, HarnessConfig(tasks=["choice", "last"]), context=64, marks=marks_for(TOKENIZER, {}),
        tasks_dir=tasks_dir, done=lambda outcome: seen.append(list(outcome.results["results"])),
    )  # fmt: skip
    assert seen == [["choice"], ["choice", "last"]]


def test_without_a_log_and_without_errors(tasks_dir):
    outcome = evaluate(tasks_dir, "last", "rolling", log_samples=False, bootstrap_iters=0)
    assert outcome.samples == {}
    assert outcome.results["results"]["last"]["perplexity_stderr,none"] == "N/A"
    assert outcome.results["results"]["rolling"]["word_perplexity_stderr,none"] == "N/A"


def test_a_model_without_a_tokenizer_is_refused(tasks_dir):
    with pytest.raises(ConfigError, match="no tokenizer"):
        run_harness(tiny_model(), None, HarnessConfig(tasks=["choice"]), context=64, marks=marks_for(TOKENIZER, {}))
