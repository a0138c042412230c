"""The text behind a bundle, and where neurons fire in it: against the data itself and against the bundle."""

import shutil

import numpy as np
import pytest
import torch

from tests.unit.data.synthetic import documents
from tests.unit.interp.tiny import T, V, collected, write_checkpoint, write_data
from topklm.bundles.exponent import STRATA
from topklm.errors import CheckpointError, ConfigError
from topklm.interp.labels.activity import fires, subject_of
from topklm.interp.labels.corpus import open_corpus
from topklm.interp.labels.excerpts import Excerpts, Span
from topklm.interp.labels.llm_config import LlmConfig
from topklm.interp.labels.llm_run import _quiet, gather, named_neurons
from topklm.report.neurons.tokens import visible

CPU = torch.device("cpu")
TEXT = np.concatenate([np.concatenate([(ids * f + 3) % V for ids in documents(n, 5)]) for n, f in ((203, 7), (61, 3))])
"""All held-out tokens, by position."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("topk")
    return collected(write_checkpoint(directory, data), directory / "b")


@pytest.fixture(scope="module")
def corpus(bundle):
    return open_corpus(bundle, None)


def test_positions_lead_to_the_tokens_of_each_source(bundle, corpus):
    for start in bundle.windows:
        assert corpus.window(int(start)).tolist() == TEXT[start : start + T].tolist()
    assert corpus.document_ids(208).tolist() == open_corpus(bundle, None).document_ids(208).tolist()


def test_whole_words_are_those_that_nothing_goes_on_with(bundle, corpus):
    continues = np.arange(V) % 3 == 0
    joined, followed = np.zeros(V), np.zeros(V)
    for start in bundle.windows:
        for token, after in zip(TEXT[start : start + T - 1], TEXT[start + 1 : start + T], strict=True):
            followed[token] += 1
            joined[token] += continues[after]
    share = corpus.whole_share(continues)
    known = followed > 0
    np.testing.assert_allclose(share[known], 1 - joined[known] / followed[known])
    assert np.isnan(share[~known]).all()


def test_other_tokens_than_the_bundles_are_refused(bundle, data, tmp_path):
    with pytest.raises(ConfigError, match=r"data: .*give the prepared data of the bundle"):
        open_corpus(bundle, str(tmp_path / "nowhere"))
    shutil.copytree(data, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "a")
    shutil.copytree(tmp_path / "other" / "b", tmp_path / "other" / "a")
    with pytest.raises(ConfigError, match="does not hold the tokens"):
        open_corpus(bundle, str(tmp_path / "other"))


def test_spans_stay_in_their_window_and_the_strongest_do_not_overlap(bundle, corpus):
    excerpts = Excerpts(corpus, 3, 1)
    assert excerpts.span(9) == Span(start=8, stop=11, token=9)
    assert excerpts.span(15) == Span(start=12, stop=16, token=15)
    stats = bundle.layer(0).stats
    for neuron in range(16):
        spans = excerpts.strongest(stats, neuron, 3)
        tokens = [span.token for span in spans]
        assert tokens[:1] == [p for p in stats.top.position[neuron] if p >= 0][:1]
        assert all(not span.overlaps(spans[:i]) for i, span in enumerate(spans))
        held = excerpts.sampled(stats, neuron, 5, spans)
        sample = stats.sample.position[neuron * STRATA : (neuron + 1) * STRATA]
        assert len(held) <= 5
        assert all(span.token in sample for span in held)
        assert all(not span.overlaps([*spans, *held[:i]]) for i, span in enumerate(held))


def test_the_text_is_the_tokens_text_with_one_marked(corpus):
    excerpts = Excerpts(corpus, 2, 1)
    assert any(not corpus.tokenizer.decode([int(v)]).strip() for v in TEXT[8:60])  # a line end among them
    for token in range(8, 60):
        span = excerpts.span(token)
        plain = corpus.tokenizer.decode(TEXT[span.start : span.stop].tolist())
        assert excerpts.text(span, False).split() == plain.split()
        marked = excerpts.text(span, True)
        assert marked.count("<<") == marked.count(">>") == 1
        own = corpus.tokenizer.decode([int(TEXT[token])])
        assert f"<<{own.strip() or visible(own)}>>" in marked


@pytest.mark.parametrize(
    ("topk", "settings"),
    [({}, {}), ({"topk": None}, {}), ({"topk": None}, {"read_topk": {"k": 3}}), ({}, {"site": "pre"}),
     ({}, {"init": "random"}), ({"step": 5}, {})],
)  # fmt: skip
def test_neurons_fire_where_the_bundle_counted_them(tmp_path, data, topk, settings):
    from topklm.interp import ReadTopK

    if "read_topk" in settings:
        settings = {"read_topk": ReadTopK(**settings["read_topk"])}
    bundle = collected(write_checkpoint(tmp_path, data, **topk), tmp_path / "b", **settings)
    wanted = {0: [3, 0], 2: list(range(16))}
    found = fires(bundle, open_corpus(bundle, None), subject_of(bundle, None, CPU), bundle.windows, wanted)
    for layer, neurons in wanted.items():
        assert found[layer].shape == (len(bundle.windows), T, len(neurons))
        np.testing.assert_array_equal(found[layer].sum((0, 1)), bundle.layer(layer).stats.fired[neurons])


def test_quiet_excerpts_are_quiet_and_apart_from_the_labels(bundle, corpus):
    excerpts = Excerpts(corpus, 2, 1)
    pool = excerpts.pool(bundle.windows)
    assert len(pool) == 2 * len(bundle.windows)
    where = fires(bundle, corpus, subject_of(bundle, None, CPU), bundle.windows, {0: [5]})[0][:, :, 0]
    flat = {int(w) + i: bool(where[row, i]) for row, w in enumerate(bundle.windows) for i in range(T)}
    shown = excerpts.strongest(bundle.layer(0).stats, 5, 2)
    found = _quiet(pool, bundle.windows, where, shown, 100, np.random.default_rng(0))
    expected = {s for s in pool if not any(flat[p] for p in range(s.start, s.stop)) and not s.overlaps(shown)}
    assert set(found) == expected
    assert expected
    assert len(_quiet(pool, bundle.windows, where, shown, 1, np.random.default_rng(0))) == 1


def test_no_text_that_the_label_was_made_from_is_held_out(bundle):
    """What stands in a corpus twice has two positions: such a copy is as little held out as the text itself."""
    names = ",".join(f"{layer}:{neuron}" for layer in range(3) for neuron in range(16))
    config = LlmConfig(bundle=str(bundle.path), neurons=names, base_url="http://x", model="m", before=0, after=0)
    _, cases = gather(config, CPU)
    assert any(case.texts for case in cases)
    for case in cases:
        shown = {text.replace("<<", "").replace(">>", "") for text in case.shown}
        assert not shown & {text for text, fired in zip(case.texts, case.fires, strict=True) if fired}


def test_another_checkpoint_is_refused(bundle, data, tmp_path):
    other = write_checkpoint(tmp_path, data, dim=32)
    with pytest.raises(CheckpointError, match="is not the checkpoint of"):
        subject_of(bundle, str(other), CPU)


def test_neurons_come_from_the_list_and_from_a_result_and_must_be_there(bundle, tmp_path):
    config = {"bundle": "b", "base_url": "http://localhost/v1", "model": "m"}
    result = tmp_path / "result.json"
    result.write_text('{"data": {"neurons": ["1:4", "0:3", "2:15"]}}')
    both = LlmConfig(neurons="0:3", candidates=str(tmp_path), n=3, **config)
    assert named_neurons(both, bundle) == [(0, 3), (1, 4), (2, 15)]
    with pytest.raises(ConfigError, match=r"3:0, 0:16: .* has layers \[0, 1, 2\] of 16 neurons"):
        named_neurons(LlmConfig(neurons="3:0,0:16,0:1", **config), bundle)
    result.write_text('{"data": {"neurons": []}}')
    with pytest.raises(ConfigError, match="found no candidates"):
        named_neurons(LlmConfig(candidates=str(tmp_path), **config), bundle)
    for text, message in (
        ('{"data": {"neurons": ["1:2:3"]}}', "'1:2:3' is not LAYER:INDEX"),
        ("{}", "names no neurons"),
    ):
        result.write_text(text)
        with pytest.raises(ConfigError, match=message):
            named_neurons(both, bundle)
