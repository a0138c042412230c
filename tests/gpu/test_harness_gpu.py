"""Scoring on a GPU: the figures of the CPU, in batches of any size."""

import pytest
import torch

from tests.unit.evaluate.tiny_lm import brute_force, tiny_model
from topklm.evaluate.harness_scoring import Scorer, Span

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SPANS = [Span((*range(n), *range(60, 60 + answer)), answer) for n in (20, 17, 3, 1) for answer in (3, 1, 5, 4)]


@pytest.mark.parametrize("batch_tokens", [1, 64, None])
def test_scores_are_those_of_the_cpu(batch_tokens):
    model = tiny_model()
    expected = [brute_force(model, span.tokens, span.n_scored) for span in SPANS]
    device = torch.device("cuda")
    found = Scorer(model.to(device), device=device, batch_tokens=batch_tokens).score(SPANS)
    for (log_p, greedy), (expected_log_p, expected_greedy) in zip(found, expected, strict=True):
        assert log_p == pytest.approx(expected_log_p, abs=1e-8)
        assert greedy == expected_greedy


def test_bf16_runs():
    device = torch.device("cuda")
    scores = Scorer(tiny_model(dtype=torch.bfloat16).to(device), device=device).score(SPANS)
    assert all(log_p < 0 for log_p, _ in scores)
