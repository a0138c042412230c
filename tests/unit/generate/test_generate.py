"""Completions: those of a loop without a cache, whatever the batch; how they end; what is told before they begin."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch

from topklm.data.tokenizers import ByteTokenizer
from topklm.errors import ConfigError, NonFiniteError
from topklm.generate import SamplingConfig, generate
from topklm.generate import loop as loop_module
from topklm.generate.sampling import distribution, uniforms
from topklm.model import KVCache, ModelConfig, build_model
from topklm.sparsity import TopKConfig, set_alpha

BYTES = ByteTokenizer()
CONFIG = ModelConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, multiple_of=8, vocab_size=260, max_seqlen=64)
PROMPTS = ["hello", "", "a much longer prompt than the others", "x", "hello there"]


@pytest.fixture(scope="module")
def model():
    """A sparse model in float64 whose next tokens are not all alike."""
    model = build_model(CONFIG, TopKConfig(k=8, n_dense_tail=1)).double()
    with torch.no_grad():
        model.head_weight.mul_(3)
    return model


@torch.no_grad()
def plain(model, ids, config, prompt, sample, steps):
    """The completion by full forward passes; 258 of the model's 260 ids are the tokenizer's."""
    ids, made, logprobs = list(ids), [], []
    noise = uniforms(config.seed, prompt, sample, steps)
    for step in range(steps):
        logits = model(torch.tensor([ids]))[0, -1]
        if config.temperature == 0:
            token = logits[:258].argmax().item()
        else:
            p = distribution(logits[None, :258], config)[0].numpy()
            token = int(np.searchsorted(np.cumsum(p), noise[step] * p.sum(), side="right"))
        made.append(token)
        logprobs.append(logits.log_softmax(-1)[token].item())
        ids.append(token)
        if token == BYTES.eos_id:
            break
    return made, logprobs


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_completions_are_those_of_a_loop_without_a_cache(model, temperature, alpha, monkeypatch):
    monkeypatch.setattr(loop_module, "PREFILL", 16)  # the long prompt comes in three parts
    set_alpha(model, alpha)
    config = SamplingConfig(max_tokens=20, temperature=temperature, top_p=0.95, seed=5, n_samples=2)
    for p, samples in enumerate(generate(model, BYTES, PROMPTS, config, batch_size=4)):
        assert samples[0].prompt_ids == BYTES.encode(PROMPTS[p], bos=True)
        for s, completion in enumerate(samples):
            ids, logprobs = plain(model, completion.prompt_ids, config, p, s, 20)
            assert completion.ids == ids
            assert completion.logprobs == pytest.approx(logprobs, abs=1e-9)
            assert completion.text == BYTES.decode(ids)
            assert completion.finish_reason == ("eos" if ids[-1] == BYTES.eos_id else "length")
    set_alpha(model, 0.0)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7, 100])
def test_the_batch_changes_nothing(model, batch_size):
    config = SamplingConfig(max_tokens=40, seed=1, n_samples=3, stop=["\x15", "5", "rr"])
    whole = generate(model, BYTES, PROMPTS, config, batch_size=15)
    assert {c.finish_reason for samples in whole for c in samples} >= {"stop", "context", "length"}
    pieces = []
    for other in (
        generate(model, BYTES, PROMPTS, config, batch_size=batch_size),
        generate(model, BYTES, PROMPTS, config, batch_size=batch_size, stream=pieces.append),
    ):
        for ours, theirs in zip(whole, other, strict=True):
            assert [(c.ids, c.text, c.finish_reason) for c in ours] == [
                (c.ids, c.text, c.finish_reason) for c in theirs
            ]
            for a, b in zip(ours, theirs, strict=True):
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-9)
    # Streamed text is the text, and each completion ends once.
    for p, samples in enumerate(whole):
        for s, completion in enumerate(samples):
            mine = [piece for piece in pieces if (piece.prompt, piece.sample) == (p, s)]
            assert "".join(piece.text for piece in mine) == completion.text
            assert [piece.finish_reason for piece in mine if piece.finish_reason] == [completion.finish_reason]
            assert mine[-1].finish_reason == completion.finish_reason


def test_a_prompts_own_completion_needs_neither_the_other_prompts_nor_the_other_samples(model):
    config = SamplingConfig(max_tokens=12, n_samples=3)
    (alone,) = generate(model, BYTES, PROMPTS[:1], dataclasses.replace(config, n_samples=2))
    together = generate(model, BYTES, PROMPTS, config)[0]
    assert [c.ids for c in alone] == [c.ids for c in together[:2]]
    assert len({tuple(c.ids) for c in together}) == 3
    (other,) = generate(model, BYTES, PROMPTS[:1], dataclasses.replace(config, seed=1))
    assert [c.ids for c in other] != [c.ids for c in together]


class Scripted(torch.nn.Module):
    """Stands for a model: after n tokens the next one is script[n]."""

    def __init__(self, script, vocab_size=258, max_seqlen=64):
        super().__init__()
        self.config = dataclasses.replace(CONFIG, vocab_size=vocab_size, max_seqlen=max_seqlen, n_layers=1)
        self.head_weight = torch.zeros(vocab_size, 4)
        self.script = script

    def forward(self, tokens, cache, at=None):
        cache.begin(*tokens.shape)
        lengths = cache.lengths[:, None] + (at if at is not None else torch.arange(tokens.shape[1])) + 1  # [B, n]
        cache.commit(tokens.shape[1])
        following = torch.tensor([[self.script[n] for n in row] for row in lengths.tolist()])
        return torch.nn.functional.one_hot(following, self.config.vocab_size) * 50.0


def test_a_part_of_the_prompts_gets_what_it_gets_among_all(model):
    """As ranks share prompts out."""
    config, prompts = SamplingConfig(max_tokens=8, temperature=1.0, seed=3), [[i, i + 1] for i in range(7)]
    whole = generate(model, None, prompts, config, bos=False)
    for rank in range(3):
        mine = range(rank, 7, 3)
        part = generate(model, None, [prompts[i] for i in mine], config, bos=False, numbers=mine)
        assert [c.ids for (c,) in part] == [whole[i][0].ids for i in mine]
    assert len({tuple(c.ids) for (c,) in whole}) == 7
    with pytest.raises(ConfigError, match="2 numbers for 7 prompts"):
        generate(model, None, prompts, config, numbers=[1, 2])


def scripted(text, **settings):
    """The completion of a model that goes on with `text` after BOS."""
    model = Scripted([0, *text, *[ord("~")] * 80])
    return generate(model, BYTES, [""], SamplingConfig(temperature=0, **settings))[0][0]


def test_how_completions_end(caplog):
    made = scripted(b"one two three", stop=["tw", "xyz"])
    assert (made.text, made.finish_reason, bytes(made.ids)) == ("one ", "stop", b"one tw")
    made = scripted([*b"one", 257, *b"two"], max_tokens=10)
    assert (made.text, made.finish_reason, made.ids[-1]) == ("one", "eos", 257)
    made = scripted([*b"one", 257, *b"two"], max_tokens=7, stop_at_eos=False)
    assert (made.text, made.finish_reason) == ("onetwo", "length")
    made = scripted(b"one two", max_tokens=5)
    assert (made.text, made.finish_reason, len(made.ids)) == ("one t", "length", 5)
    # What was held back as a possible stop string, or half a character, is text after all.
    assert scripted(b"one two", max_tokens=5, stop=["twice"]).text == "one t"
    assert scripted("one €".encode(), max_tokens=5, stop=["twice"]).text == "one \ufffd"
    assert scripted("one €".encode(), max_tokens=7, stop=["€"]).text == "one "
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        made = scripted(b"one two", max_tokens=500)
    assert (made.finish_reason, len(made.prompt_ids) + len(made.ids)) == ("context", 64)
    assert "1 of 1 completions ended at the context of 64 tokens" in caplog.text


def test_a_longer_context_is_taken_if_asked_for(model):
    (completion,) = generate(model, BYTES, ["x"], SamplingConfig(max_tokens=90, stop_at_eos=False), context=80)[0]
    assert len(completion.prompt_ids) + len(completion.ids) == 80
    assert completion.finish_reason == "context"


def test_memory_is_bounded_by_what_the_batch_needs(model, monkeypatch):
    sizes = []

    class Seen(KVCache):
        def __init__(self, config, batch, capacity, **kwargs):
            sizes.append((batch, capacity))
            super().__init__(config, batch, capacity, **kwargs)

    monkeypatch.setattr(loop_module, "KVCache", Seen)
    generate(model, BYTES, ["abc", "abcdef"], SamplingConfig(max_tokens=5, n_samples=4))
    generate(model, BYTES, ["abc"], SamplingConfig(max_tokens=10_000))
    assert sizes == [(2, 7 + 5), (1, 64)]


def test_everything_that_is_wrong_is_told_before_anything_is_generated(model, monkeypatch):
    monkeypatch.setattr(loop_module, "_complete", lambda *args: pytest.fail("generated"))

    def told(prompts, config=SamplingConfig(), tokenizer=BYTES, **kwargs):  # noqa: B008
        with pytest.raises(ConfigError) as caught:
            generate(model, tokenizer, prompts, config, **kwargs)
        return {problem.key: problem.message for problem in caught.value.problems}

    found = told(["fine", "y" * 63, "z" * 100, ""], bos=False, context=50)
    assert set(found) == {"prompts[1]", "prompts[2]", "prompts[3]"}
    assert "63 tokens" in found["prompts[1]"]
    assert "context of 50" in found["prompts[1]"]
    assert "bos=true" in found["prompts[3]"]
    assert set(told([[5, 260], [-1], []])) == {"prompts[0]", "prompts[1]", "prompts[2]"}
    assert set(told("one text")) == set(told([1, 2])) == {"prompts"}
    assert set(told(["a"], SamplingConfig(temperature=-1), batch_size=0, context=1)) == {
        "temperature", "batch_size", "context",
    }  # fmt: skip
    assert set(told(["a"], tokenizer=None)) == {"tokenizer"}
    assert set(told([[1]], SamplingConfig(stop=["x"]), tokenizer=None)) == {"tokenizer"}

    class NoBos(ByteTokenizer):
        bos_id = None

    assert "bos=false" in told(["a"], tokenizer=NoBos())["bos"]
    assert generate(model, BYTES, [], SamplingConfig()) == []
    with pytest.raises(ConfigError, match="Linear is not this project's model"):
        generate(torch.nn.Linear(1, 1), BYTES, ["a"], SamplingConfig())


def test_prompts_of_ids_stay_as_they_are_and_need_no_tokenizer(model):
    config = SamplingConfig(max_tokens=6, stop_at_eos=False)
    ids = BYTES.encode("hello", bos=True)
    (text,), (bare,) = generate(model, BYTES, ["hello"], config), generate(model, None, [torch.tensor(ids)], config)
    assert bare[0].prompt_ids == ids
    assert (bare[0].text, bare[0].finish_reason) == ("", "length")
    # Without a tokenizer all of the model's ids can be drawn; here none beyond the tokenizer's was.
    assert bare[0].ids == text[0].ids


def test_logits_that_are_not_finite_are_an_error(model):
    broken = build_model(CONFIG, None)
    with torch.no_grad():
        broken.norm.weight[3] = math.nan
    with pytest.raises(NonFiniteError, match="prompt 0"):
        generate(broken, BYTES, ["a"], SamplingConfig())
    with pytest.raises(NonFiniteError, match="prompt 0"):  # all of the model's ids can be drawn
        generate(broken, None, [[1]], SamplingConfig())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_run(model, dtype):
    low = build_model(CONFIG, TopKConfig(k=8, n_dense_tail=1)).to(dtype)
    results = generate(low, BYTES, PROMPTS, SamplingConfig(max_tokens=9, n_samples=2, stop_at_eos=False), batch_size=3)
    assert [[len(c.ids) for c in samples] for samples in results] == [[9, 9]] * 5
