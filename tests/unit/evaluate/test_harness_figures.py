"""What is added to the harness's figures: standard errors, token perplexity, nearness to chance; and its progress."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topklm.evaluate import harness_progress
from topklm.evaluate.harness_figures import add_token_perplexity, fill_errors, near_chance

pairs = st.lists(st.tuples(st.floats(-500, -1), st.integers(1, 400)), min_size=2, max_size=30)


def samples(name, values):
    return [{"doc_id": i, "filter": "none", "metrics": [name], name: value} for i, value in enumerate(values)]


def test_errors_of_weighted_perplexities_agree_with_the_bootstrap():
    draw = np.random.default_rng(0)
    weights = draw.integers(50, 400, 120)
    log_p = -weights * draw.normal(4, 0.3, 120)
    index = draw.integers(0, 120, (4000, 120))
    ratios = -log_p[index].sum(1) / weights[index].sum(1)
    for name, figures in {"word_perplexity": np.exp(ratios), "bits_per_byte": ratios / math.log(2)}.items():
        ratio = -log_p.sum() / weights.sum()
        value = math.exp(ratio) if name == "word_perplexity" else ratio / math.log(2)
        metrics = {f"{name},none": value, f"{name}_stderr,none": "N/A"}
        fill_errors(metrics, samples(name, list(zip(log_p.tolist(), weights.tolist(), strict=True))))
        assert metrics[f"{name}_stderr,none"] == pytest.approx(figures.std(ddof=1), rel=0.08)


@given(pairs)
def test_an_error_is_never_invented_or_replaced(values):
    metrics = {"word_perplexity,none": 3.0, "word_perplexity_stderr,none": 0.5}
    fill_errors(metrics, samples("word_perplexity", values))
    assert metrics["word_perplexity_stderr,none"] == 0.5
    metrics = {"word_perplexity,none": 3.0, "word_perplexity_stderr,none": "N/A"}
    fill_errors(metrics, samples("word_perplexity", values[:1]))
    assert metrics["word_perplexity_stderr,none"] == "N/A"
    fill_errors(metrics, samples("f1", values))
    assert set(metrics) == {"word_perplexity,none", "word_perplexity_stderr,none"}


def test_token_perplexity():
    log = [{"doc_id": i, "filter": "none", "metrics": [], "filtered_resps": [-6.0 * n]} for i, n in enumerate((3, 5))]
    metrics = {}
    add_token_perplexity(metrics, log, {0: 6, 1: 10})
    assert metrics["token_perplexity,none"] == pytest.approx(math.exp(3.0))
    fill_errors(metrics, log)
    assert metrics["token_perplexity_stderr,none"] == pytest.approx(0, abs=1e-12)
    assert log[1]["token_perplexity"] == (-30.0, 10)


@pytest.mark.parametrize(
    ("value", "error", "chance", "near"),
    [
        (0.25, 0.02, 0.25, True), (0.2899, 0.02, 0.25, True), (0.291, 0.02, 0.25, False), (0.2101, 0.02, 0.25, True),
        (0.20, 0.02, 0.25, False), (0.0, 0.0, 0.0, True), (0.9, 0.0, 0.25, False), (0.25, "N/A", 0.25, True),
        (0.25, 0.1, None, False),
    ],
)  # fmt: skip
def test_near_chance_is_within_two_standard_errors(value, error, chance, near):
    metrics = {
        "alias": "t",
        "acc,none": value,
        "acc_stderr,none": error,
        "perplexity,none": 3.0,
        "sample_len": 4_000_000,
    }
    assert near_chance(metrics, chance) == (["acc,none"] if near else [])


@pytest.mark.parametrize(("n", "near"), [(2, True), (3, True), (4, True), (5, False)])
@pytest.mark.parametrize("error", [0.0, "N/A", float("nan")])
def test_few_documents_that_are_all_right_are_no_evidence(n, near, error):
    """All of n right at chance 0.5: the sample's own error is 0, that of guessing 0.5 / sqrt(n)."""
    assert near_chance({"acc,none": 1.0, "acc_stderr,none": error, "sample_len": n}, 0.5) == (
        ["acc,none"] if near else []
    )


def test_normalised_accuracy_is_judged_by_itself():
    metrics = {"acc,none": 0.5, "acc_stderr,none": 0.01, "acc_norm,none": 0.26, "acc_norm_stderr,none": 0.01}
    assert near_chance(metrics, 0.25) == ["acc_norm,none"]


def test_progress_in_a_log_never_exceeds_all(monkeypatch, caplog):
    monkeypatch.setattr(harness_progress, "LOG_EVERY", 0)
    caplog.set_level("INFO", "topklm")
    with harness_progress.shown("requests", 10) as advance:
        for done in (0, 8, 8):
            advance(done)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "requests: 0 of 10", "requests: 8 of 10", "requests: 10 of 10",
    ]  # fmt: skip
