"""Evaluations side by side: planted differences are found, and what does not compare is not compared."""

import math

import numpy as np
import pytest

from topklm.errors import ConfigError
from topklm.report.evals import compare_evaluations
from topklm.report.evals.tables import verdict

from .synthetic import TOPK, FakeValidation, provenance, write

RNG = np.random.default_rng(0)
RIGHT = (RNG.random(400) < 0.7).astype(int).tolist()
WORSE = [int(right and i % 4 != 0) for i, right in enumerate(RIGHT)]  # a quarter of the right answers lost
GUESSED = (RNG.random(400) < 0.5).astype(int).tolist()
SIZES = RNG.integers(20, 60, 80).tolist()
LOSSES = RNG.normal(3.0, 0.4, 80).tolist()
HIGHER = [loss + gap for loss, gap in zip(LOSSES, RNG.normal(0.1, 0.02, 80).tolist(), strict=True)]


def twins(root, dense, topk):
    """An evaluation of a dense model and one of its TopK twin, each with its own scores, validation and provenance."""
    sparse = {"name": "topk", "topk": TOPK, "alpha": 0.0, **topk.pop("provenance", {})}
    return [
        write(root, "dense", provenance(**dense.pop("provenance", {})), **dense),
        write(root, "topk", provenance(**sparse), **topk),
    ]


def difference(comparison, task, metric):
    return next(d for d in comparison.differences if (d.column.task, d.column.metric) == (task, metric))


def test_planted_differences_are_found(tmp_path):
    paths = twins(
        tmp_path,
        {"scores": RIGHT, "validation": FakeValidation(LOSSES, SIZES)},
        {"scores": WORSE, "validation": FakeValidation(HIGHER, SIZES)},
    )
    comparison = compare_evaluations(paths)
    assert [row.run.name for row in comparison.rows] == ["dense", "topk"]
    found = difference(comparison, "pick", "acc")
    assert (found.run, found.twin) == ("topk", "dense")
    assert found.paired.difference == pytest.approx(np.mean(WORSE) - np.mean(RIGHT))
    assert found.paired.high < 0
    assert verdict(found) == "worse"
    gap = sum((b - a) * n for a, b, n in zip(LOSSES, HIGHER, SIZES, strict=True)) / sum(SIZES)
    perplexity = difference(comparison, "val", "ppl")
    assert perplexity.paired.difference == pytest.approx(gap, rel=1e-9)
    values = [row.cells[perplexity.column].value for row in comparison.rows]
    assert math.exp(perplexity.paired.difference) == pytest.approx(values[1] / values[0])
    assert verdict(perplexity) == "worse"
    bits = difference(comparison, "val", "bpb")
    assert bits.paired.difference == pytest.approx(0.9 * gap / math.log(2) / 4, rel=1e-9)
    assert not any("dense twin" in note and "no" in note.split() for note in comparison.notes)


def test_equal_models_do_not_differ(tmp_path):
    shuffled = RNG.permutation(RIGHT).tolist()
    comparison = compare_evaluations(twins(tmp_path, {"scores": RIGHT}, {"scores": shuffled}))
    found = difference(comparison, "pick", "acc")
    assert found.paired.difference == pytest.approx(0)
    assert verdict(found) == ""


@pytest.mark.parametrize("metric", ["perplexity", "word_perplexity", "bits_per_byte"])
def test_metrics_that_are_sums_of_logarithms(tmp_path, metric):
    """The harness logs the log-likelihood of a document, alone or with its size."""
    from topklm.evaluate import write_results

    def evaluation(root, name, found, logs):
        values = [log_p if metric == "perplexity" else (log_p, size) for log_p, size in zip(logs, SIZES, strict=True)]
        total = -sum(logs) / (len(logs) if metric == "perplexity" else sum(SIZES))
        value = total / math.log(2) if metric == "bits_per_byte" else math.exp(total)
        write_results(
            root / name / "evals" / "0000000010", provenance=found,
            harness={"results": {"t": {f"{metric},none": value, f"{metric}_stderr,none": "N/A", "sample_len": 80}}},
            samples={"t": [{"doc_id": i, "filter": "none", metric: v} for i, v in enumerate(values)]},
        )  # fmt: skip
        return root / name

    mine, its = ([-n * x / 10 for n, x in zip(SIZES, losses, strict=True)] for losses in (HIGHER, LOSSES))
    comparison = compare_evaluations([
        evaluation(tmp_path, "dense", provenance(), its),
        evaluation(tmp_path, "topk", provenance("topk", TOPK, alpha=0.0), mine),
    ])  # fmt: skip
    values = [row.cells[comparison.columns[0]].value for row in comparison.rows]
    assert comparison.rows[0].cells[comparison.columns[0]].stderr is None
    found = difference(comparison, "t", metric)
    expected = values[1] - values[0] if metric == "bits_per_byte" else math.log(values[1] / values[0])
    assert found.paired.difference == pytest.approx(expected)
    assert verdict(found) == "worse"


def test_a_log_that_does_not_give_its_figure_is_not_paired(tmp_path):
    paths = twins(tmp_path, {"scores": RIGHT}, {"scores": WORSE})
    from topklm.evaluate import write_results

    from .synthetic import harness

    results, _ = harness(WORSE)
    _, other = harness(RIGHT)
    write_results(paths[1] / "evals/0000000010", provenance=provenance("topk", TOPK, alpha=0.0), harness=results,
                  samples=other)  # fmt: skip
    comparison = compare_evaluations(paths)
    assert not comparison.differences
    assert any("no log by document" in note for note in comparison.notes)


def test_other_samples_are_not_paired(tmp_path):
    paths = twins(tmp_path, {"scores": RIGHT}, {"scores": WORSE[:300], "n_all": 400})
    comparison = compare_evaluations(paths)
    assert not comparison.differences
    assert any("asked 300 and 400" in note for note in comparison.notes)
    assert any("300 of its 400" in note for note in comparison.notes)


def test_scores_near_guessing_are_marked_and_said(tmp_path):
    comparison = compare_evaluations(
        twins(tmp_path, {"scores": RIGHT}, {"scores": GUESSED, "near": ["acc,none"]})
    )  # fmt: skip
    (column,) = comparison.columns
    assert [row.cells[column].near_chance for row in comparison.rows] == [False, True]
    assert [row.cells[column].chance for row in comparison.rows] == [0.5, 0.5]
    assert any("(pick)" in note and "guessing" in note for note in comparison.notes)


def test_two_models_that_guess_do_not_differ(tmp_path):
    fewer = [int(right and i % 9 != 0) for i, right in enumerate(GUESSED)]
    near = {"near": ["acc,none"]}
    one = compare_evaluations(twins(tmp_path / "1", {"scores": GUESSED, **near}, {"scores": fewer, **near}))
    (found,) = one.differences
    assert found.paired.high < 0
    assert verdict(found) == ""
    two = compare_evaluations(twins(tmp_path / "2", {"scores": GUESSED}, {"scores": fewer, **near}))
    assert verdict(two.differences[0]) == "worse"


def test_rows_that_repeat_are_told(tmp_path):
    """Nobody can tell whether a table that repeats a row shows a result or a mistake."""
    comparison = compare_evaluations(twins(tmp_path / "1", {"scores": RIGHT}, {"scores": RIGHT}))
    assert any("dense and topk have the same value in every figure" in note for note in comparison.notes)
    comparison = compare_evaluations(twins(tmp_path / "2", {"scores": RIGHT}, {"scores": WORSE}))
    assert not any("same value" in note for note in comparison.notes)


def test_models_of_different_tokenizers_are_compared_by_bits_per_byte(tmp_path):
    validation = FakeValidation(LOSSES, SIZES)
    paths = twins(
        tmp_path, {"validation": validation}, {"validation": validation, "provenance": {"tokenizer": "u" * 64}}
    )
    comparison = compare_evaluations(paths)
    assert [column.metric for column in comparison.columns] == ["bpb"]
    assert any("different tokenizers" in note and "Bits per byte" in note for note in comparison.notes)
    same = compare_evaluations(twins(tmp_path / "same", {"validation": validation}, {"validation": validation}))
    assert [column.metric for column in same.columns] == ["ppl", "bpb"]


def test_different_held_out_text_is_told_and_not_paired(tmp_path):
    other = FakeValidation(LOSSES, [n + 1 for n in SIZES], fingerprint="g" * 64)
    comparison = compare_evaluations(
        twins(tmp_path, {"validation": FakeValidation(LOSSES, SIZES)}, {"validation": other})
    )
    assert not comparison.differences
    assert any("different held-out text" in note for note in comparison.notes)


def test_another_context_is_another_figure(tmp_path):
    paths = twins(tmp_path, {"scores": RIGHT}, {"scores": WORSE, "provenance": {"context": 2048}})
    comparison = compare_evaluations(paths)
    assert [column.title for column in comparison.columns] == ["pick acc @256", "pick acc @2048"]
    assert not comparison.differences


def test_twins_are_models_of_one_step_that_differ_in_the_topk_alone(tmp_path):
    paths = twins(tmp_path, {"scores": RIGHT}, {"scores": WORSE, "provenance": {"step": 20}})
    comparison = compare_evaluations(paths)
    assert not comparison.differences
    assert any("no dense twin at step 20" in note for note in comparison.notes)
    at_20 = write(tmp_path, "dense", provenance(step=20), scores=GUESSED)
    both = [tmp_path / "dense/evals/0000000010", at_20 / "evals/0000000020", paths[1]]
    comparison = compare_evaluations(both)
    assert [row.run.name for row in comparison.rows] == ["dense, step 10", "dense, step 20", "topk"]
    assert [d.twin for d in comparison.differences] == ["dense, step 20"]
    longer = write(tmp_path / "longer", "topk", provenance("topk", TOPK, alpha=0.0, steps=99), scores=WORSE)
    comparison = compare_evaluations([paths[0] / "evals/0000000010", longer])
    assert any("differs in steps" in note for note in comparison.notes)


def test_a_model_of_unknown_training_has_no_twin(tmp_path):
    paths = twins(tmp_path, {"scores": RIGHT, "provenance": {"steps": None}},
                  {"scores": WORSE, "provenance": {"steps": None}})  # fmt: skip
    comparison = compare_evaluations(paths)
    assert not comparison.differences
    assert any("not known (steps)" in note for note in comparison.notes)


def test_a_reader_is_told_of_alpha_failed_tasks_and_other_settings(tmp_path):
    from topklm.evaluate import write_results

    from .synthetic import harness

    paths = twins(tmp_path, {"scores": RIGHT}, {"scores": WORSE})
    half = provenance("topk", TOPK, alpha=0.25) | {"dtype": "bfloat16"}
    results, samples = harness(WORSE)
    write_results(paths[1] / "evals/0000000010", provenance=half, harness=results, samples=samples,
                  failed={"arc_easy": "its data are missing"})  # fmt: skip
    notes = " ".join(compare_evaluations(paths).notes)
    assert "alpha 0.25" in notes
    assert "arc_easy was not evaluated: its data are missing" in notes
    assert "different dtypes: bfloat16, float32" in notes


def test_tables_show_accuracy_and_perplexity_of_a_task_and_all_of_one_without(tmp_path):
    from topklm.evaluate import write_results

    results = {"results": {
        "choice": {"acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.6, "acc_norm_stderr,none": 0.1},
        "last": {"acc,none": 0.5, "perplexity,none": 9.0},
        "text": {"word_perplexity,none": 20.0, "bits_per_byte,none": 1.0},
    }}  # fmt: skip
    write_results(tmp_path / "evals/0000000010", provenance=provenance(), harness=results)
    comparison = compare_evaluations([tmp_path])
    assert [(c.task, c.metric) for c in comparison.main_columns] == [
        ("choice", "acc"), ("last", "acc"), ("last", "perplexity"),
        ("text", "word_perplexity"), ("text", "bits_per_byte"),
    ]  # fmt: skip
    assert ("choice", "acc_norm") in [(c.task, c.metric) for c in comparison.columns]


def test_every_path_without_an_evaluation_is_told_at_once(tmp_path):
    path = write(tmp_path, "dense", provenance(), scores=RIGHT)
    with pytest.raises(ConfigError) as error:
        compare_evaluations([path, tmp_path / "x", path, tmp_path / "y"])
    assert [problem.key for problem in error.value.problems] == ["runs[1]", "runs[2]", "runs[3]"]
