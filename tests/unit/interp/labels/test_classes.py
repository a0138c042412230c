"""The test of classes against brute force, and against words that have nothing in common."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.interp.entropy.coherence import false_discovery
from topklm.interp.labels.classes import LEAST_WORDS, PART, nearest_classes, shuffled_shares, top_words
from topklm.interp.labels.wordnet import CLASSES

pytest.importorskip("scipy")
FOOD, ANIMAL, MOTION, ADJ = (CLASSES.index(name) for name in ("noun.food", "noun.animal", "verb.motion", "adj.all"))


def tail(x, universe, members, size):
    """P(X >= x) by counting sets."""
    ways = sum(comb(members, i) * comb(universe - members, size - i) for i in range(x, min(members, size) + 1))
    return ways / comb(universe, size)


def by_definition(top, classes, null):
    """p of every (tested neuron, tested class), and which those are."""
    members = np.bincount(classes, minlength=len(CLASSES))
    part = {c: (classes >= 0 if null == "words" else PART[classes] == PART[c]) for c in range(len(CLASSES))}
    columns = [c for c in range(len(CLASSES)) if LEAST_WORDS <= members[c] < part[c].sum()]
    rows = [i for i in range(len(top)) if (top[i] >= 0).sum() >= LEAST_WORDS]
    p = np.ones((len(rows), len(columns)))
    for a, i in enumerate(rows):
        mine = top[i][top[i] >= 0]
        for b, c in enumerate(columns):
            x, size = int((classes[mine] == c).sum()), int(part[c][mine].sum())
            p[a, b] = tail(x, int(part[c].sum()), int(members[c]), size)
    return p, rows, columns


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), null=st.sampled_from(["words", "part_of_speech"]))
def test_p_and_q_are_those_of_counting(seed, null):
    rng = np.random.default_rng(seed)
    classes = rng.choice([FOOD, ANIMAL, MOTION, ADJ], rng.integers(12, 40), p=[0.3, 0.3, 0.3, 0.1])
    top = np.full((6, 10), -1)
    for row in top:
        n = rng.integers(0, 11)
        row[:n] = rng.permutation(len(classes))[:n]
    found = nearest_classes(top, classes, null)
    p, rows, columns = by_definition(top, classes, null)
    assert found.n_classes == len(columns)
    q = false_discovery(p)
    assert np.flatnonzero(found.number >= 0).tolist() == (rows if columns else [])
    for a, i in enumerate(rows if columns else []):
        b = columns.index(found.number[i])
        assert p[a, b] == pytest.approx(p[a].min(), rel=1e-9)
        assert found.p[i] == pytest.approx(p[a, b], rel=1e-9)
        assert found.q[i] == pytest.approx(q[a, b], rel=1e-9)
        mine = top[i][top[i] >= 0]
        inside = PART[classes] == PART[found.number[i]] if null == "part_of_speech" else classes >= 0
        expected = (classes == found.number[i])[mine].sum() / max(1, inside[mine].sum())
        assert found.lift[i] == pytest.approx(expected / ((classes == found.number[i]).sum() / inside.sum()))


def test_a_planted_class_is_found_and_a_part_of_speech_is_not_taken_for_a_meaning():
    classes = np.repeat([FOOD, ANIMAL, MOTION, ADJ], 50)
    rng = np.random.default_rng(0)
    food = rng.permutation(50)[:12]
    nouns = np.concatenate((rng.permutation(50)[:6], 50 + rng.permutation(50)[:6]))
    adjectives = 150 + rng.permutation(50)[:12]
    top = np.stack([food, nouns, adjectives])
    found = nearest_classes(top, classes)
    assert found.number[0] == FOOD
    assert found.number[2] == ADJ
    assert (found.q[[0, 2]] < 0.001).all()
    assert found.lift[0] == pytest.approx(4.0)
    within = nearest_classes(top, classes, "part_of_speech")
    assert within.number[0] == FOOD
    assert within.q[0] < 0.001
    assert (within.q[1:] > 0.2).all()  # all nouns alike; adj.all has its part of speech to itself
    assert within.n_classes == 2


def test_random_words_have_no_class_and_p_is_not_too_small():
    rng = np.random.default_rng(1)
    classes = rng.choice([FOOD, ANIMAL, MOTION, ADJ], 200)
    top = np.stack([rng.permutation(200)[:20] for _ in range(400)])
    p = by_definition(top, classes, "words")[0]
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level * 1.15
    assert (nearest_classes(top, classes).q <= 0.05).sum() <= 2
    assert shuffled_shares(top, classes, rng.integers(20, 500, 200), 0.05, 5, 0).max() <= 0.02


def test_shuffling_keeps_what_frequency_alone_explains():
    # Every food is frequent, everything else rare, and neurons prefer what is frequent: that is no preference for food.
    classes = np.repeat([FOOD, ANIMAL, MOTION], [20, 40, 40])
    counts = np.where(classes == FOOD, 1000, 20)
    top = np.stack([np.random.default_rng(i).permutation(20)[:10] for i in range(30)])
    assert (nearest_classes(top, classes).q <= 0.05).all()
    assert shuffled_shares(top, classes, counts, 0.05, 3, 0).tolist() == [1.0, 1.0, 1.0]
    assert shuffled_shares(top, classes, np.full(100, 20), 0.05, 3, 0).max() <= 0.4
    assert len(shuffled_shares(top, classes, counts, 0.05, 0, 0)) == 0


def test_top_words_are_positive_and_ordered():
    means = np.array([[0.5, -1.0, 0.0], [2.0, -2.0, 0.0], [0.5, 3.0, 0.0]])  # [W, N]
    assert top_words(means, 2).tolist() == [[1, 0], [2, -1], [-1, -1]]
    assert top_words(means, 9).shape == (3, 3)


def test_neurons_with_few_words_and_small_classes_are_not_tested():
    classes = np.repeat([FOOD, ANIMAL, MOTION], [30, 30, LEAST_WORDS - 1])
    top = np.full((2, 8), -1)
    top[0, : LEAST_WORDS - 1] = np.arange(LEAST_WORDS - 1)
    top[1] = np.arange(8)
    found = nearest_classes(top, classes)
    assert found.number.tolist() == [-1, FOOD]
    assert np.isnan(found.q[0])
    assert found.n_classes == 2
    assert nearest_classes(top, np.zeros(40, np.int64)).number.tolist() == [-1, -1]  # one class only
