"""Words and their classes, from WordNet's own files."""

import pytest

from tests.unit.interp.labels.lexicon import write_lexicon
from topklm.errors import ConfigError, DataError
from topklm.interp.labels.wordnet import CLASSES, Entry, read_lexicon


def found(lexicon, word):
    entry = lexicon.lookup(word)
    return None if entry is None else (entry.lemma, CLASSES[entry.number])


@pytest.fixture(scope="module", params=["index.sense", "cntlist.rev"])
def lexicon(request, tmp_path_factory):
    return read_lexicon(str(write_lexicon(tmp_path_factory.mktemp("wordnet") / "dict", counts=request.param).parent))


def test_there_are_the_45_lexicographer_files_in_their_order():
    assert len(CLASSES) == len(set(CLASSES)) == 45
    assert [CLASSES[i] for i in (0, 3, 13, 28, 38, 43, 44)] == [
        "adj.all", "noun.Tops", "noun.food", "noun.time", "verb.motion", "verb.weather", "adj.ppl"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("bread", ("bread", "noun.food")),
        ("Bread", ("bread", "noun.food")),
        ("dogs", ("dog", "noun.animal")),
        ("cities", ("city", "noun.location")),
        ("boxes", ("box", "noun.artifact")),
        ("making", ("make", "verb.creation")),
        ("nicer", ("nice", "adj.all")),
        ("quickly", ("quickly", "adv.all")),
        ("children", ("child", "noun.person")),  # irregular
        ("run", ("run", "verb.motion")),  # 50 + 30 of two senses, not the 60 of one
        ("saw", ("see", "verb.perception")),  # of see, saw and saw, the one that occurs most
        ("building", ("build", "verb.creation")),
        ("buildings", ("building", "noun.artifact")),
        ("ash", ("ash", "noun.substance")),  # never tagged: first sense, nouns first
        ("in", None),  # a function word, though WordNet has indium
        ("us", None),
        ("zebra", None),
        ("", None),
    ],
)
def test_a_word_has_its_most_frequent_class(lexicon, word, expected):
    assert found(lexicon, word) == expected


def test_irregular_forms_need_the_lists(tmp_path):
    without = read_lexicon(str(write_lexicon(tmp_path, exceptions=None)))
    assert not without.has_exceptions
    assert found(without, "children") is None
    assert found(without, "dogs") == ("dog", "noun.animal")


def test_forms_of_irregular_words_are_not_cut(tmp_path):
    # "as" would be left of "ass" by the rule for plurals; what the list names comes first
    senses = {"noun": {"axe": [("noun.artifact", 1)], "ax": [("noun.act", 9)]}}
    lexicon = read_lexicon(str(write_lexicon(tmp_path, senses, {"noun": {"axes": "axe"}})))
    assert lexicon.lookup("axes") == Entry("axe", CLASSES.index("noun.artifact"))


def test_what_is_missing_is_told_with_how_to_fetch_it(tmp_path):
    with pytest.raises(ConfigError, match=r"does not exist; fetch it: bash scripts/fetch_wordnet\.sh"):
        read_lexicon(str(tmp_path / "nowhere"))
    root = write_lexicon(tmp_path / "some")
    (root / "data.verb").unlink()
    (root / "index.sense").unlink()
    with pytest.raises(ConfigError, match=r"lacks data\.verb, index\.sense or cntlist\.rev"):
        read_lexicon(str(root))


@pytest.mark.parametrize("text", ["dog n x\n", "dog n 1 0 1 1 99999999\n", "dog\n"])
def test_files_of_something_else_are_refused(tmp_path, text):
    root = write_lexicon(tmp_path / "wn")
    (root / "index.noun").write_text(text)
    with pytest.raises(DataError, match="is not WordNet's database"):
        read_lexicon(str(root))
