"""Which bundles are paired."""

import dataclasses
import itertools

from tests.unit.interp.consistency.runs import run
from topklm.bundles import open_bundle
from topklm.bundles.meta import write_meta
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


def test_activations_have_their_names_and_no_two_series_one_label(tmp_path):
    """Rows, floors and figures are kept by label: two series of one would be mixed into one mean."""
    paths = [run(tmp_path, seed) for seed in (1, 2)]
    for i, (name, width) in enumerate((("jumprelu", 9), ("relu", 9), ("batchtopk", 9), ("topk", 7), ("topk", 8))):
        for seed in (1, 2):
            (tmp_path / str(i)).mkdir(exist_ok=True)
            path = run(tmp_path / str(i), seed)
            meta = open_bundle(path).meta
            model = dataclasses.replace(
                meta.model, topk=meta.model.topk | {"activation": name}, model=meta.model.model | {"ffn": width}
            )
            write_meta(path, dataclasses.replace(meta, model=model))
            paths.append(path)
    series, problems = sorted_into(paths)
    assert problems == []
    labels = [each.label for each in series]
    assert labels[1:4] == ["jumprelu k=3", "relu", "batchtopk k=3"]
    assert all(label.startswith("TopK k=3 (") for label in (labels[0], *labels[4:]))
    assert len(set(labels)) == 6


def test_a_run_that_is_alone_or_there_twice_is_told(tmp_path):
    alone, once = run(tmp_path, 1, name="dense", alpha=None), run(tmp_path, 2)
    _, problems = sorted_into([alone, once, once])
    told = "\n".join(map(str, problems))
    assert f"{alone} (dense) is alone" in told
    assert f"{once} and {once} are of the same weights" in told
