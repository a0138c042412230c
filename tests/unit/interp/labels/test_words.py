"""Which token types are words, and how neurons respond to words."""

import numpy as np
import pytest

from tests.unit.interp.labels.lexicon import write_lexicon
from topklm.interp.labels.wordnet import CLASSES, Entry, read_lexicon
from topklm.interp.labels.words import continues_a_word, find_words

PIECES = [
    "<unk>", " dog", " Dogs", "dog", " bread", " do", " the", " zebra", " che", " cheese", " run2", " children", "ese",
    " ", " red", "<0x0A>", "\u00e9s", " because",
]  # fmt: skip


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory):
    return read_lexicon(str(write_lexicon(tmp_path_factory.mktemp("wordnet"))))


def test_forms_of_a_lemma_are_one_word_and_pieces_are_none(lexicon):
    counts = np.arange(len(PIECES)) * 10
    share = np.ones(len(PIECES))
    share[PIECES.index(" red")] = 0.4
    words = find_words(PIECES, counts, lexicon, 20, share)
    expected = {
        Entry("bread", CLASSES.index("noun.food")): [4],
        Entry("cheese", CLASSES.index("noun.food")): [9],
        Entry("child", CLASSES.index("noun.person")): [11],
        Entry("dog", CLASSES.index("noun.animal")): [1, 2],
    }
    assert words.entries == list(expected)
    assert words.counts.tolist() == [sum(10 * v for v in types) for types in expected.values()]
    for i, types in enumerate(expected.values()):
        assert np.flatnonzero(words.of_type == i).tolist() == types
    covered = words.coverage
    # " dog", " Dogs", " bread", " the", " zebra", " che", " cheese", " children", " red", " because"
    assert (covered.types, covered.pieces, covered.parts, covered.function) == (17, 10, 1, 2)
    assert (covered.unknown, covered.mapped, covered.words, covered.kept) == (2, 5, 4, 4)
    assert covered.tokens == pytest.approx((10 + 20 + 40 + 90 + 110) / counts.sum())
    assert "2 are function words" in covered.sentence()
    assert len(find_words(PIECES, counts, lexicon, 20).entries) == 5  # red too, where parts are not known
    assert len(find_words(PIECES, counts, lexicon, 1000).entries) == 0


def test_a_type_that_never_occurred_or_has_no_text_is_no_word(lexicon):
    counts = np.zeros(len(PIECES) + 4, np.int64)  # a padded vocabulary
    counts[[4, -1]] = 30
    words = find_words(PIECES, counts, lexicon, 20, np.full(len(counts), np.nan))
    assert [entry.lemma for entry in words.entries] == ["bread"]
    assert words.coverage.types == 1


def test_the_mean_of_a_word_is_over_all_occurrences_of_its_forms(lexicon):
    rng = np.random.default_rng(0)
    counts = rng.integers(20, 50, len(PIECES))
    words = find_words(PIECES, counts, lexicon, 20)
    table = rng.normal(size=(len(PIECES), 5))

    class Bundle:
        """Gives its table in blocks, as a bundle does."""

        class meta:  # noqa: N801
            class model:  # noqa: N801
                dim = 5

        def layer(self, layer):
            return self

        def table_blocks(self, name):
            for start in range(0, len(table), 4):
                rows = np.arange(start, min(start + 4, len(table)))
                yield rows, table[rows]

    means = words.means(Bundle(), 0)
    for i in range(len(words.entries)):
        types = words.of_type == i
        np.testing.assert_allclose(means[i], table[types].sum(0) / counts[types].sum(), rtol=1e-12)


def test_pieces_that_go_on_with_a_word():
    going_on = [piece for piece, goes in zip(PIECES, continues_a_word(PIECES), strict=True) if goes]
    assert going_on == ["dog", "ese", "\u00e9s"]
