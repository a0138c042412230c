"""Which bundles are paired."""

import itertools

from tests.unit.interp.consistency.runs import run
from topklm.bundles import open_bundle
from topklm.interp.consistency.series import series_of


def sorted_into(paths):
    return series_of([open_bundle(path) for path in paths])


def test_runs_are_paired_with_those_of_other_seeds(tmp_path):
    trained = [run(tmp_path, seed) for seed in (1, 2, 3)]
    initial = [run(tmp_path, seed, init="random", step=0) for seed in (1, 2)]
    dense = [run(tmp_path, seed, name="dense", alpha=None) for seed in (1, 2)]
    series, problems = sorted_into([*initial, *trained, *dense])
    assert problems == []
    found = {each.label: each for each in series}
    assert list(found) == ["TopK k=3, initial weights", "TopK k=3", "dense"]
    assert found["TopK k=3"].pairs == list(itertools.combinations(range(3), 2))
    assert [source.name for source in found["TopK k=3"].sources] == [f"run{s} (seed {s})" for s in (1, 2, 3)]
    assert found["dense"].sources[0].name == f"dense {dense[0].name} (seed 1)"  # two of one name
    assert [each.is_initial for each in series] == [True, False, False]
    assert found["TopK k=3"].architecture == found["TopK k=3, initial weights"].architecture
    assert found["TopK k=3"].architecture != found["dense"].architecture


def test_runs_from_the_same_initial_weights_are_a_series_of_their_own(tmp_path):
    paths = [run(tmp_path, 1), run(tmp_path, 2), run(tmp_path, 3, initial=1)]
    (other, same), problems = sorted_into(paths)
    assert problems == []
    assert (other.label, same.label) == ("TopK k=3", "TopK k=3, same initial weights")
    assert (other.pairs, same.pairs) == ([(0, 1), (1, 2)], [(0, 1)])
    assert [source.name for source in same.sources] == ["run1 (seed 1)", "run3 (seed 1)"]
    assert (other.same_initial, same.same_initial) == (False, True)


def test_other_steps_and_readings_are_other_series(tmp_path):
    paths = [run(tmp_path, seed, step=step) for step in (100, 200) for seed in (1, 2)]
    cut = {"k": 3, "relu": True, "n_dense_tail": 1}
    paths += [run(tmp_path, seed, name="cut", alpha=None, cut=cut) for seed in (1, 2)]
    series, problems = sorted_into(paths)
    assert problems == []
    assert [each.label for each in series] == [
        "TopK k=3, step 100", "TopK k=3, step 200", "dense, read through k=3, step 100"
    ]  # fmt: skip


def test_a_run_that_is_alone_or_there_twice_is_told(tmp_path):
    alone, once = run(tmp_path, 1, name="dense", alpha=None), run(tmp_path, 2)
    _, problems = sorted_into([alone, once, once])
    told = "\n".join(map(str, problems))
    assert f"{alone} (dense) is alone" in told
    assert f"{once} and {once} are of the same weights" in told
