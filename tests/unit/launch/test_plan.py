"""From a sweep's configuration to its runs."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.config import build, load_config, to_dict
from topklm.errors import ConfigError
from topklm.launch import SweepConfig, plan_runs
from topklm.launch.plan import formatted
from topklm.train import TrainConfig


def names(runs):
    return [run.name for run in runs]


def test_a_grid_is_every_combination_with_every_seed_and_one_twin_per_seed(make_sweep):
    config = make_sweep(
        grid={"topk.k": [4, 8], "topk.n_dense_tail": [0, 1]}, seeds=[1, 2], twins=True,
        run_name="k{topk.k}-n{topk.n_dense_tail}-s{seed}", twin_name="dense-s{seed}",
    )  # fmt: skip
    runs = plan_runs(config)
    combinations = [f"k{k}-n{n}-s{s}" for k, n, s in itertools.product([4, 8], [0, 1], [1, 2])]
    assert names(runs) == ["dense-s1", "dense-s2", *combinations]
    by_name = {run.name: run for run in runs}
    run, twin = by_name["k4-n0-s2"], by_name["dense-s2"]
    assert (run.twin, run.seed, run.swept) == ("dense-s2", 2, {"topk.k": 4, "topk.n_dense_tail": 0})
    assert (run.config.seed, run.config.model.seed, run.config.data.seed) == (2, 2, 2)
    assert (run.config.topk.k, run.config.topk.n_dense_tail) == (4, 0)
    assert run.config.dump_dir.endswith("sweep/k4-n0-s2")
    # Twins: nothing else differs.
    differ = {key for key, value in to_dict(run.config).items() if to_dict(twin.config)[key] != value}
    assert differ == {"name", "dump_dir", "topk"}
    assert (twin.config.topk, twin.swept, twin.twin, twin.is_dense) == (None, {}, None, True)


def test_a_twin_for_every_dense_configuration(make_sweep):
    runs = plan_runs(make_sweep(grid={"model.dim": [32, 64], "topk.k": [4, 8]}, twins=True))
    assert names(runs) == ["dense-dim32", "dense-dim64", "dim32-k4", "dim32-k8", "dim64-k4", "dim64-k8"]
    assert [run.twin for run in runs[2:]] == ["dense-dim32", "dense-dim32", "dense-dim64", "dense-dim64"]
    assert runs[0].swept == {"model.dim": 32}


def test_a_dense_run_of_the_sweep_is_the_twin_and_is_trained_once(make_sweep):
    runs = plan_runs(make_sweep(runs=[{"topk": None}, {"topk.k": 4}], run_name="k{topk.k}", twins=True))
    assert names(runs) == ["knone", "k4"]
    assert runs[1].twin == "knone"


def test_entries_of_runs_are_combined_with_the_grid_and_show_all_swept_values(make_sweep):
    runs = plan_runs(
        make_sweep(
            runs=[{"topk.anneal_ratio": 0.25}, {"topk.anneal_form": "relu"}], grid={"topk.k": [4, 8]},
            run_name="{topk.anneal_form}-{topk.anneal_ratio}-k{topk.k}",
        )
    )  # fmt: skip
    assert names(runs) == ["blend-0.25-k4", "blend-0.25-k8", "relu-0.5-k4", "relu-0.5-k8"]
    assert runs[2].swept == {"topk.anneal_ratio": 0.5, "topk.anneal_form": "relu", "topk.k": 4}


def test_set_lies_over_the_base_dotted_or_nested(make_sweep):
    (run,) = plan_runs(make_sweep(set={"optim.lr": 0.1, "optim": {"warmup": 3}, "steps": 7}))
    assert (run.config.optim.lr, run.config.optim.warmup, run.config.steps) == (0.1, 3, 7)
    assert run.name == "sweep"


def test_a_key_that_yaml_reads_as_a_number_is_a_key(make_sweep):
    (run,) = plan_runs(make_sweep(set={"data": {"sources": {2024: 1.0}}}))
    assert run.config.data.sources == {"a": 1.0, "2024": 1.0}


def test_a_mapping_in_the_grid_takes_the_place_of_a_section(make_sweep):
    (run,) = plan_runs(make_sweep(grid={"topk": [{"k": 3}]}, run_name="k{topk.k}"))
    assert (run.config.topk.k, run.config.topk.n_dense_tail) == (3, 2)


def test_null_is_a_value(make_sweep):
    runs = plan_runs(make_sweep(grid={"model.ffn_dim": [48, None]}))
    assert names(runs) == ["ffn_dim48", "ffn_dimnone"]
    assert [run.config.model.ffn_dim for run in runs] == [48, None]


def test_the_sweeps_yaml_takes_null_in_a_grid_and_settings_from_the_command_line(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("base_config: b.yaml\ndump_dir: d/${name}\nname: x\ngrid: {model.ffn_dim: [48, null]}\n")
    config = load_config(SweepConfig, [f"config={path}", "set.steps=9", "set.topk.k=3", "seeds=[1,2]"])
    assert config.grid == {"model.ffn_dim": [48, None]}
    assert config.set == {"steps": 9, "topk": {"k": 3}}
    assert (config.dump_dir, config.seeds) == ("d/x", [1, 2])


def test_every_problem_of_every_run_is_told_at_once(make_sweep):
    with pytest.raises(ConfigError) as caught:
        plan_runs(make_sweep(grid={"topk.k": [4, 99], "optim.lrr": [1.0]}, run_name="k{topk.k}"))
    said = str(caught.value)
    assert "topk.k: 99" in said
    assert "did you mean optim.lr?" in said
    assert "with topk.k=99, optim.lrr=1.0" in said
    assert "with topk.k=4, optim.lrr=1.0" in said


@pytest.mark.parametrize(
    ("sweep", "key", "said"),
    [
        ({"grid": {"topk.k": [4, 8]}, "run_name": "same"}, "run_name", "put {topk.k} into it"),
        ({"seeds": [1, 2], "run_name": "same"}, "run_name", "put {seed} into it"),
        ({"grid": {"model.dim": [32, 64]}, "twins": True, "twin_name": "d"}, "twin_name", "put {model.dim} into it"),
        ({"runs": [{"topk.k": 8}, {}], "run_name": "{topk.kk}"}, "run_name", "no key of a training's configuration"),
        ({"run_name": "a/b"}, "run_name", "is no name"),
        ({"run_name": "report"}, "run_name", "the sweep's own"),
        ({"run_name": "{topk}"}, "run_name", "is not one value"),
        ({"set": {"checkpoint.path": "p"}, "grid": {"topk.k": [4, 8]}}, "checkpoint.path", "would share p"),
        ({"grid": {"topk.k.x": [1]}, "run_name": "a"}, "topk.k.x", "topk.k is a value, not a section"),
        ({"set": {"topk": None}, "grid": {"topk.k": [4]}}, "topk.k", "the section topk is null here"),
    ],
)
def test_what_cannot_be(make_sweep, sweep, key, said):
    with pytest.raises(ConfigError) as caught:
        plan_runs(make_sweep(**sweep))
    assert any(problem.key == key and said in problem.message for problem in caught.value.problems), caught.value


def test_the_same_run_twice_is_refused(make_sweep):
    with pytest.raises(ConfigError, match="two runs are called k8; they are the same"):
        plan_runs(make_sweep(runs=[{"topk.k": 8}, {}]))


def test_keys_may_refer_to_the_name(make_sweep):
    runs = plan_runs(make_sweep(grid={"topk.k": [4, 8]}, set={"checkpoint.path": "elsewhere/${name}"}))
    assert [run.config.checkpoint.path for run in runs] == ["elsewhere/k4", "elsewhere/k8"]


@pytest.mark.parametrize(
    ("sweep", "key"),
    [
        ({"grid": {"a": []}}, "grid.a"),
        ({"grid": {"seed": [1]}, "seeds": [1]}, "grid.seed"),
        ({"grid": {"name": ["x"]}}, "grid.name"),
        ({"grid": {"a": [1]}, "runs": [{"a": 2}]}, "runs[0]"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"max_parallel": 0}, "max_parallel"),
        ({"figures": {"x": "b"}, "grid": {"a": [1]}}, "figures.x"),
        ({"slurm": {"nodes": 2}}, "gpus_per_run"),
    ],
)
def test_rules_of_a_sweep(sweep, key):
    with pytest.raises(ConfigError) as caught:
        build(SweepConfig, {"base_config": "b", "dump_dir": "d", **sweep})
    assert [problem.key for problem in caught.value.problems] == [key]


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4, unique=True),
    st.lists(st.floats(0, 1), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(0, 99), max_size=3, unique=True),
)
def test_names_are_distinct_and_runs_complete(tmp_path_factory, ks, ratios, seeds):
    base = tmp_path_factory.mktemp("plan") / "base.yaml"
    base.write_text("data: {root_dir: d, sources: {a: 1}}\nmodel: {dim: 32, n_heads: 2}\ntopk: {k: 8}\n")
    runs = plan_runs(
        SweepConfig(
            base_config=str(base), dump_dir="d", twins=True, seeds=seeds,
            grid={"topk.k": ks, "topk.anneal_ratio": ratios},
        )
    )  # fmt: skip
    n_seeds = max(1, len(seeds))
    assert len({run.name for run in runs}) == len(runs) == n_seeds * (len(ks) * len(ratios) + 1)
    assert sum(run.is_dense for run in runs) == n_seeds
    assert all(isinstance(run.config, TrainConfig) for run in runs)


def test_a_value_below_a_null_section_is_none():
    assert formatted("k{topk.k}-{a}", {"topk": None, "a": 0.5}) == "knone-0.5"
