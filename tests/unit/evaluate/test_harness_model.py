"""Text requests: what is scored for them, and that the answers are those of the plainest computation."""

import itertools
import json
import math
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("lm_eval")


from lm_eval.api.instance import Instance

from tests.unit.evaluate.tiny_lm import TOKENIZER, brute_force, tiny_model, words
from topklm.errors import ConfigError
from topklm.evaluate.harness import work_of
from topklm.evaluate.harness_marks import Marks, marks_for
from topklm.evaluate.harness_model import HarnessModel
from topklm.evaluate.harness_ranks import Crew
from topklm.evaluate.harness_scoring import Scorer

BOS, EOS = 256, 257
MODEL = tiny_model()
WITH_BOS, WITHOUT = Marks(True, BOS, ""), Marks(False, EOS, "")


@contextmanager
def silent(description, total):
    yield lambda done: None


def harness_model(window=64, marks=WITH_BOS, model=MODEL):
    crew = Crew(work_of(model, TOKENIZER, Scorer(model, device=torch.device("cpu"))))
    return HarnessModel(TOKENIZER, crew, window=window, marks=marks, progress=silent)


def request(kind, *args):
    return Instance(request_type=kind, doc={}, arguments=args, idx=0, metadata=("task", 0, 1))


def ids(text):
    return list(text.encode())


texts = st.text(alphabet="ab .é", max_size=12)


@settings(deadline=None, max_examples=60)
@given(texts, texts.filter(bool), st.booleans(), st.integers(4, 30))
def test_a_continuation_is_scored_after_its_context(context, continuation, bos, window):
    lm = harness_model(window, WITH_BOS if bos else WITHOUT)
    # With bytes the pair is the concatenation: spaces between the two belong to the continuation.
    kept = context.rstrip()
    head = [BOS] if bos or not context else []
    prefix = [*(head if context else [BOS if bos else EOS]), *ids(kept if context else "")]
    answer = ids((context[len(kept) :] if context else "") + continuation)
    ((log_p, greedy),) = lm.loglikelihood([request("loglikelihood", context, continuation)])
    prefix = prefix or [EOS]  # a context of nothing but spaces, and no BOS
    whole, total, expected_greedy = [*prefix, *answer], 0.0, True
    first = len(prefix)
    for start, end in _parts(first, len(whole), window):
        part, part_greedy = brute_force(MODEL, whole[max(0, end - window - 1) : end], end - start)
        total, expected_greedy = total + part, expected_greedy and part_greedy
    assert log_p == pytest.approx(total, abs=1e-9)
    assert greedy == expected_greedy


def _parts(start, end, window):
    """Stretches of `window` tokens counted from the end."""
    bounds = [start, *range(end - (end - start - 1) // window * window, end, window), end]
    return list(itertools.pairwise(bounds))


def test_many_requests_keep_their_order_and_share_contexts():
    lm = harness_model()
    requests = [
        request("loglikelihood", words(i // 4, 6), answer)
        for i, answer in enumerate([" the", " a", " of the people", " of"] * 5)
    ]
    for one, (log_p, _) in zip(requests, lm.loglikelihood(requests), strict=True):
        context, continuation = one.args
        tokens = [BOS, *ids(context + continuation)][-65:]
        assert log_p == pytest.approx(brute_force(MODEL, tokens, len(ids(continuation)))[0], abs=1e-9)


@pytest.mark.parametrize("marks", [WITH_BOS, WITHOUT])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 32, 33, 100])
def test_rolling_predicts_every_token_once_in_the_harness_windows(marks, n):
    window = 16
    text = words(n, n)[:n]
    tokens, total = ids(text), 0.0
    # The first window after the prefix; then windows without overlap, of which the last reaches back to be full.
    for start in range(0, n, window):
        end = min(start + window, n)
        before = [marks.prefix_id] if start == 0 else tokens[end - window - 1 : start]
        total += brute_force(MODEL, [*before, *tokens[start:end]], end - start)[0]
    lm = harness_model(window, marks)
    assert lm.loglikelihood_rolling([request("loglikelihood_rolling", text)]) == [pytest.approx(total, abs=1e-9)]
    spans, _ = lm.spans(request("loglikelihood_rolling", text))
    assert sum(span.n_scored for span in spans) == n


def test_bos_is_not_predicted_in_a_text():
    lm = harness_model(64)
    (log_p,) = lm.loglikelihood_rolling([request("loglikelihood_rolling", "it")])
    assert log_p == pytest.approx(brute_force(MODEL, [BOS, *ids("it")], 2)[0], abs=1e-9)


def test_how_much_of_a_prompt_was_cut():
    lm = harness_model(8)
    assert lm.spans(request("loglikelihood", "0123", "45"))[1] == 0
    spans, n_cut = lm.spans(request("loglikelihood", "0123456789", "ab"))
    assert n_cut == 1 + 10 + 2 - 9
    assert spans[0].tokens == tuple(ids("3456789ab"))


def greedy_text(prompt, n, window):
    tokens = prompt
    made = []
    for _ in range(n):
        with torch.no_grad():
            made.append(int(MODEL(torch.tensor([[*tokens, *made]]))[0, -1].argmax()))
        if made[-1] == EOS:
            break
    return TOKENIZER.decode(made)


def test_generation_is_greedy_and_ends_where_it_should():
    lm = harness_model(48)
    prompts = [words(i, 3 + i) for i in range(5)]
    settings_ = {"until": [], "max_gen_toks": 8}
    expected = [greedy_text([BOS, *ids(prompt)][-40:], 8, 48) for prompt in prompts]
    requests = [request("generate_until", prompt, settings_) for prompt in prompts]
    assert lm.generate_until(requests) == expected
    stop = expected[0][2:4]
    (stopped,) = lm.generate_until([request("generate_until", prompts[0], {"until": stop, "max_gen_toks": 8})])
    assert stopped == expected[0].split(stop)[0]


def test_requests_with_other_settings_are_generated_apart():
    lm = harness_model(64)
    prompts = [("the", 3), ("of", 5), ("a", 3)]
    found = lm.generate_until([request("generate_until", p, {"max_gen_toks": n}) for p, n in prompts])
    assert found == [greedy_text([BOS, *ids(p)], n, 64) for p, n in prompts]


@pytest.mark.parametrize(
    ("settings_", "said"),
    [({"max_gen_toks": 64}, "no room"), ({}, "no room"), ({"max_gen_toks": 4, "num_beams": 3}, "num_beams")],
)
def test_generation_that_cannot_be_done_is_refused_with_the_task(settings_, said):
    with pytest.raises(ConfigError, match=said) as error:
        harness_model(64).generate_until([request("generate_until", "a", settings_)])
    assert "task" in str(error.value)


class TestMarks:
    def test_as_trained(self):
        run = {"data": {"add_bos": False, "add_eos": True}}
        marks = marks_for(TOKENIZER, run)
        assert (marks.bos, marks.prefix_id) == (False, EOS)
        assert "as trained" in marks.words

    @pytest.mark.parametrize(
        ("add_bos", "add_eos", "bos", "expected"),
        [
            (True, True, None, (True, BOS)),
            (True, True, False, (False, BOS)),
            (False, True, None, (False, EOS)),
            (False, True, True, (True, BOS)),
            (False, False, None, (False, BOS)),
        ],
    )
    def test_the_prefix_is_what_came_before_documents(self, add_bos, add_eos, bos, expected):
        marks = marks_for(TOKENIZER, {"data": {"add_bos": add_bos, "add_eos": add_eos}}, bos)
        assert (marks.bos, marks.prefix_id) == expected

    @pytest.mark.parametrize("stated", [True, False])
    def test_a_hugging_face_directory_tells(self, tmp_path, stated):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": stated}))
        assert marks_for(TOKENIZER, {"huggingface": {}}, path=tmp_path).bos == stated

    def test_a_run_that_does_not_tell(self):
        marks = marks_for(TOKENIZER, {})
        assert (marks.bos, marks.prefix_id) == (True, BOS)
        assert "does not tell" in marks.words

    def test_a_tokenizer_without_bos(self):
        class Bare:
            name, bos_id, eos_id = "sp", None, 2

            def piece(self, token_id):
                return "</s>"

        assert marks_for(Bare(), {}).prefix_id == 2
        with pytest.raises(ConfigError, match="bos=false"):
            marks_for(Bare(), {}, bos=True)


def test_no_score_is_positive():
    assert all(
        log_p <= 0 and math.isfinite(log_p)
        for log_p, _ in harness_model().loglikelihood([request("loglikelihood", "a", " b")] * 3)
    )
