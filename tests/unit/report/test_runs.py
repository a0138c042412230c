"""Reading run directories: what is tolerated, and that every mistake is told at once."""

import logging

import pytest
import yaml

from tests.unit.report.conftest import BASE, PROVENANCE, TOPK
from topklm.errors import ConfigError, DataError
from topklm.report import read_run, read_runs
from topklm.report.compare import compare
from topklm.report.runs import WITHOUT_K, number
from topklm.report.tables import result_columns
from topklm.sparsity.registry import activation_class, activation_names


def append(path, text):
    with (path / "metrics.jsonl").open("a") as file:
        file.write(text)


def test_lines_are_told_apart(twins):
    run = read_run(twins[1])
    assert (run.name, run.step, len(run.training), len(run.validation)) == ("sparse", 100, 20, 2)
    assert run.views == ["32"]
    assert run.tokens_per_step == 128
    assert run.setting("topk.k") == 3
    assert run.setting("topk.k.nothing") is None


def test_half_written_last_line_is_left_out_and_told(twins, caplog):
    append(twins[0], '{"global_step": 105, "loss/ou')
    with caplog.at_level(logging.WARNING, "topklm.report"):
        run = read_run(twins[0])
    assert run.step == 100
    assert "half written" in caplog.text


def test_whole_last_line_without_line_end_counts(twins, caplog):
    append(twins[0], '{"global_step": 105, "loss/out": 7.0}')
    assert read_run(twins[0]).step == 105
    assert not caplog.text


@pytest.mark.parametrize("line", ['{"global_step": 105, "loss/ou\n', "[1]\n", '{"loss/out": 1.0}\n',
                                  '{"global_step": 105, "loss/out": "many"}\n', "\xff\n"])  # fmt: skip
def test_other_broken_lines_are_errors_with_their_number(twins, line):
    append(twins[0], line)
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 23"):
        read_run(twins[0])


def test_null_is_not_finite_and_missing_is_none(make_run):
    run = read_run(make_run("a", **{"val/ppl@32": None}))
    assert number(run.validation[-1], "val/ppl@32") != number(run.validation[-1], "val/ppl@32")
    assert number(run.validation[-1], "topk/dead") is None


def test_every_problem_at_once(make_run, twins, tmp_path):
    unvalidated = make_run("unvalidated", validate=False)
    no_metrics = make_run("no_metrics")
    (no_metrics / "metrics.jsonl").unlink()
    broken = make_run("broken")
    append(broken, "{\n")
    with pytest.raises(ConfigError) as caught:
        read_runs([twins[0], tmp_path / "gone", no_metrics, unvalidated, broken, twins[0]])
    told = {problem.key: problem.message for problem in caught.value.problems}
    assert set(told) == {"runs[1]", "runs[2]", "runs[3]", "runs[4]", "runs[5]"}
    assert "no directory" in told["runs[1]"]
    assert "no metrics.jsonl" in told["runs[2]"]
    assert "validated nothing" in told["runs[3]"]
    assert "not JSON" in told["runs[4]"]
    assert "twice" in told["runs[5]"]


def test_runs_of_one_name_are_called_by_their_directory(make_run):
    paths = [make_run("a", config={"name": "same"}), make_run("b", config={"name": "same"}), make_run("c")]
    assert [run.name for run in read_runs(paths)] == [str(paths[0]), str(paths[1]), "c"]


def settings(**changes):
    """Dotted keys (with __ for .) to a configuration."""
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
    for key, value in changes.items():
        *sections, leaf = key.split("__")
        node = config
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return config


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("steps", settings(steps="abc")),
        ("steps", settings(steps=None)),
        ("steps", settings(steps=True)),
        ("model", settings(model=None)),
        ("model.dim", settings(model__dim="wide")),
        ("data.sources", settings(data__sources=["a"])),
        ("data.sources", settings(data__sources={"a": "much"})),
        ("data.sources", settings(data__sources={"a": 0})),
        ("topk", settings(topk=False)),
        ("topk.anneal_steps", settings(topk__anneal_steps="x")),
        ("topk.k", settings(topk__k="x")),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(make_run, key, config):
    path = make_run("wrong")
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError) as caught:
        read_run(path)
    assert [problem.key for problem in caught.value.problems] == [key]
    assert "config.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("section", "k"),
    [
        ({}, 3),
        ({"activation": "relu"}, None),
        ({"activation": "identity"}, None),
        ({"activation": "stat_topk", "options": {"z": None}}, 3),
        ({"activation": "stat_topk", "options": {"z": 1.5}}, None),
        ({"k_per_layer": [3, 6, 9]}, "3 6 9"),
    ],
)
def test_k_is_told_where_it_means_something(make_run, section, k):
    run = read_run(make_run("a", topk={**TOPK, **section}))
    assert run.k == k
    (column,) = [column for column in result_columns(compare([run])) if column.key == "k"]
    assert column.text(compare([run]).rows[0]) == ("-" if k is None else str(k))


def test_what_has_no_k_is_what_the_registry_says():
    assert set(WITHOUT_K) == {name for name in activation_names() if not activation_class(name).uses_k}


def test_an_empty_configuration_is_no_dense_run(make_run):
    path = make_run("empty")
    (path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"config\.yaml is empty"):
        read_run(path)


def test_total_tokens_that_are_null_are_passed_over(make_run):
    path = make_run("a")
    append(path, '{"global_step": 105, "loss/out": 7.0, "optim/total_tokens": null}\n')
    assert read_run(path).tokens_per_step == 128


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"n_parameters": "many"}', '{"versions": 7}', '{"versions": {"torch": 2}}', '{"device": 0}']
)
def test_broken_provenance_is_named(make_run, text):
    path = make_run("a")
    (path / "provenance.json").write_text(text)
    with pytest.raises(DataError, match=r"provenance\.json"):
        read_run(path)


def test_provenance_is_read_where_there_is_one(make_run):
    run = read_run(make_run("new", provenance=PROVENANCE))
    assert (run.recorded("n_parameters"), run.recorded("versions.torch")) == (123_456_789, "2.11.0")
    assert read_run(make_run("old")).recorded("versions.torch") is None


def test_views_of_the_held_out_text_are_sorted_by_context(make_run):
    others = {f"val/ppl@{view}": 3.0 for view in ("256-stride64", "8", "256-documents", "256")}
    run = read_run(make_run("a", **others, **{"val/s/ppl@9": 1.0}))
    assert run.views == ["8", "32", "256", "256-documents", "256-stride64"]
