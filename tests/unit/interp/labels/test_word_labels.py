"""Labels of a planted bundle: lines say what the tables say, by words and by tokens."""

import numpy as np
import pytest

from tests.unit.bundles.reference import brute, meta_of, random_tokens
from tests.unit.interp.labels.lexicon import write_lexicon
from topklm.bundles import NamedBundle, open_bundle, write_bundle
from topklm.config import load_config
from topklm.errors import ConfigError
from topklm.interp.labels import WordsConfig
from topklm.interp.labels.classes import nearest_classes, top_words
from topklm.interp.labels.word_labels import class_labels, class_lines, token_lines
from topklm.interp.labels.word_report import classed_model, words_result
from topklm.interp.labels.wordnet import CLASSES, read_lexicon

pytest.importorskip("scipy")
SENSES = {"noun": {word: [("noun.food", 2)] for word in ("ale", "bun", "cake", "dill", "egg")}
                  | {word: [("noun.time", 2)] for word in ("year", "zeit")}}  # fmt: skip
PIECES = [" ale", " ales", " bun", " cake", " dill", " egg", " year", " zeit", " con"]
CONFIG = WordsConfig(bundle=["b"], whole_words=False, min_count=2, top_tokens=3, top_words=6, shuffles=2)


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory):
    return read_lexicon(str(write_lexicon(tmp_path_factory.mktemp("wordnet"), SENSES)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "b"
    layers = {"0": "dense", "1": "dense"}
    made = []
    for layer in (0, 1):
        tokens = random_tokens(layer, n=120, sparse=False, last=layer == 1)
        tokens.types = np.arange(120) % 9
        made.append((layer, brute(tokens, 9)))
    counts = np.bincount(np.arange(120) % 9).astype(np.int64)
    write_bundle(path, meta_of(250, 4, "w" * 64, layers), counts, np.arange(250) * 4, made,
                 model=(np.ones((9, 6)), PIECES))  # fmt: skip
    return open_bundle(path)


def test_a_line_of_each_tested_neuron_has_its_class_and_its_words(bundle, lexicon):
    found = class_labels(CONFIG, bundle, lexicon)
    lemmas = [entry.lemma for entry in found.words.entries]
    assert lemmas == ["ale", "bun", "cake", "dill", "egg", "year", "zeit"]
    types = [[0, 1], [2], [3], [4], [5], [6], [7]]
    tops = []
    for layer in (0, 1):
        table = bundle.layer(layer).table("sum").dense(9)
        means = np.array([table[each].sum(0) / bundle.counts[each].sum() for each in types])
        tops.append(top_words(means, 6))
    top = np.concatenate(tops)
    np.testing.assert_array_equal(found.top, top)
    expected = nearest_classes(top, found.words.classes)
    lines = {(line.layer, line.neuron): line for line in class_lines(CONFIG, bundle, lexicon, found)}
    tested = np.flatnonzero(expected.number >= 0)
    assert 0 < len(tested) == len(lines)
    for i in tested:
        line = lines[int(found.layer[i]), int(found.neuron[i])]
        assert (line.source, line.bundle, line.label) == ("wordnet", bundle.sha256, CLASSES[expected.number[i]])
        assert (line.p, line.q, line.score) == (expected.p[i], expected.q[i], expected.lift[i])
        assert line.significant == (line.q <= 0.05)
        assert line.settings["words"] == [lemmas[w] for w in top[i] if 0 <= w < 5]
        assert line.settings["wordnet"] == lexicon.sha256
    result = words_result(
        CONFIG, [classed_model(CONFIG, NamedBundle(bundle=bundle, name="b"), found)], [found], lexicon
    )
    assert result.data["models"][0]["tested"] == len(tested)
    assert any("token types occurred" in statement for statement in result.statements)


def test_top_tokens_are_those_with_the_largest_means(bundle):
    for line in token_lines(bundle, 3, 2):
        means = bundle.layer(line.layer).table("sum").dense(9)[:, line.neuron] / bundle.counts
        best = [v for v in np.argsort(-means, kind="stable")[:3] if means[v] > 0]
        assert line.label.split() == [PIECES[v].replace(" ", "\u2423") for v in best]
        assert line.significant is None


def test_too_few_words_are_told(bundle, lexicon, tmp_path):
    config = WordsConfig(bundle=["b"], whole_words=False, min_count=10_000)
    with pytest.raises(ConfigError, match="min_count: no word of WordNet occurred 10000 times"):
        class_labels(config, bundle, lexicon)
    file = tmp_path / "words.yaml"
    file.write_text("bundle: [b]\nchance: part_of_speech\n")
    assert load_config(WordsConfig, [f"config={file}"]).chance == "part_of_speech"
    keys = [problem.key for problem in WordsConfig(top_words=4, fdr=2.0, shuffles=-1).problems()]
    assert keys == ["bundle", "top_words", "shuffles", "fdr"]
