"""Scores of spans: those of one full forward pass each, however they are batched, shared or cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.evaluate.tiny_lm import brute_force, tiny_model
from topklm.errors import NonFiniteError
from topklm.evaluate import harness_scoring
from topklm.evaluate.harness_scoring import Scorer, Span, cut
from topklm.model.scoring import score_tokens

ids = st.lists(st.integers(0, 257), min_size=1, max_size=40)
MODEL = tiny_model()


@given(ids, ids, st.integers(1, 50))
def test_a_cut_scores_every_token_of_the_continuation_once_with_all_context_that_fits(context, continuation, window):
    spans = cut(context, continuation, window)
    whole = [*context, *continuation]
    end = len(context)
    for span in spans:
        end += span.n_scored
        assert 1 <= span.n_scored < len(span.tokens)
        assert list(span.tokens) == whole[max(0, end - window - 1) : end]
    assert end == len(whole)
    if len(continuation) <= window:  # as the harness's own HFLM cuts
        assert spans == [Span(tuple(whole[-(window + 1) :]), len(continuation))]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=12), st.integers(1, 300))
def test_scores_are_those_of_one_forward_pass_each(pairs, batch_tokens):
    spans = [Span((*context, *continuation), len(continuation)) for context, continuation in pairs]
    told = []
    found = Scorer(MODEL, device=torch.device("cpu"), batch_tokens=batch_tokens).score(spans, told.append)
    assert sum(told) == len(spans)
    for span, (log_p, greedy) in zip(spans, found, strict=True):
        expected, expected_greedy = brute_force(MODEL, span.tokens, span.n_scored)
        assert log_p == pytest.approx(expected, abs=1e-9)
        assert greedy == expected_greedy


few = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 257), min_size=1, max_size=30), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), few), min_size=2, max_size=16),
    st.integers(1, 200),
)
def test_answers_to_one_question_share_its_pass_and_keep_their_scores(contexts, answers, batch_tokens):
    spans = [Span((*contexts[c % len(contexts)], *answer), len(answer)) for c, answer in answers]
    found = Scorer(MODEL, device=torch.device("cpu"), batch_tokens=batch_tokens).score(spans)
    for span, (log_p, greedy) in zip(spans, found, strict=True):
        expected, expected_greedy = brute_force(MODEL, span.tokens, span.n_scored)
        assert log_p == pytest.approx(expected, abs=1e-9)
        assert greedy == expected_greedy


def test_a_long_context_runs_once(monkeypatch):
    shapes = []

    def seen(model, tokens, *args):
        shapes.append(tuple(tokens.shape))
        return score_tokens(model, tokens, *args)

    monkeypatch.setattr(harness_scoring, "score_tokens", seen)
    spans = [Span((*range(n), *range(50, 50 + answer)), answer) for n in (20, 17) for answer in (3, 1, 5, 4)]
    Scorer(MODEL, device=torch.device("cpu")).score(spans)
    assert shapes == [(2, 20), (6, 4)]
    shapes.clear()
    Scorer(MODEL, device=torch.device("cpu")).score([Span((1, *range(50, 50 + n)), n) for n in (7, 8, 9)])
    assert shapes == [(3, 9)]  # nothing to gain


@pytest.mark.parametrize(("k", "alpha"), [(None, 0.0), (8, 0.0), (8, 0.4), (1, 0.0)])
def test_dense_annealing_and_pure_models(k, alpha):
    model = tiny_model(k=k, alpha=alpha)
    spans = [Span(tuple(range(n, 2 * n + 5)), 3) for n in range(1, 20)]
    for span, (log_p, _) in zip(spans, Scorer(model, device=torch.device("cpu")).score(spans), strict=True):
        assert log_p == pytest.approx(brute_force(model, span.tokens, 3)[0], abs=1e-9)


def test_the_most_probable_continuation_is_greedy_and_no_other():
    tokens = [5, 6, 7]
    for _ in range(4):
        with torch.no_grad():
            tokens.append(int(MODEL(torch.tensor([tokens]))[0, -1].argmax()))
    other = [*tokens[:-1], (tokens[-1] + 1) % 258]
    scores = Scorer(MODEL, device=torch.device("cpu")).score([Span(tuple(tokens), 4), Span(tuple(other), 4)])
    assert [greedy for _, greedy in scores] == [True, False]


def test_answers_that_differ_in_their_last_token_share_a_row(monkeypatch):
    shapes = []

    def seen(model, tokens, *args):
        shapes.append(tuple(tokens.shape))
        return score_tokens(model, tokens, *args)

    monkeypatch.setattr(harness_scoring, "score_tokens", seen)
    spans = [Span((1, 2, 3, 4, answer), n) for answer in range(10, 14) for n in (1, 2)]
    found = Scorer(MODEL, device=torch.device("cpu")).score(spans)
    assert shapes == [(1, 4)]
    assert found[5][0] == pytest.approx(brute_force(MODEL, [1, 2, 3, 4, 12], 2)[0], abs=1e-9)


def test_a_batch_that_does_not_fit_is_halved_and_the_longest_comes_first(monkeypatch):
    rows = []

    def small(model, tokens, *args):
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("no")
        rows.append(tuple(tokens.shape))
        return score_tokens(model, tokens, *args)

    monkeypatch.setattr(harness_scoring, "score_tokens", small)
    spans = [Span(tuple(range(n)), 1) for n in range(2, 12)]
    found = Scorer(MODEL, device=torch.device("cpu"), batch_tokens=200).score(spans)
    widths = [width for _, width in rows]
    assert widths == sorted(widths, reverse=True)
    for span, (log_p, _) in zip(spans, found, strict=True):
        assert log_p == pytest.approx(brute_force(MODEL, span.tokens, 1)[0], abs=1e-9)


def test_one_row_that_does_not_fit_is_an_error(monkeypatch):
    def never(*_):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(harness_scoring, "score_tokens", never)
    with pytest.raises(torch.OutOfMemoryError):
        Scorer(MODEL, device=torch.device("cpu")).score([Span((1, 2), 1)])


def test_a_model_without_finite_logits_is_refused():
    model = tiny_model(k=None)
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError):
        Scorer(model, device=torch.device("cpu")).score([Span((1, 2, 3), 1)])


def test_nothing_to_score():
    assert Scorer(MODEL, device=torch.device("cpu")).score([]) == []
