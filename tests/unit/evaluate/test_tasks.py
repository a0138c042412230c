"""Loading tasks: local ones with their data, and what is said of those that cannot be loaded."""

import json

import pytest

pytest.importorskip("lm_eval")

from importlib import import_module
from pathlib import Path

from topklm.config import load_config
from topklm.errors import ConfigError
from topklm.evaluate.app_config import EvalAppConfig
from topklm.evaluate.harness_config import HarnessConfig
from topklm.evaluate.tasks import chance_level, check_tasks, load_tasks

ROOT = Path(__file__).parents[3]
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
DOCUMENTS = [
    {"question": "one", "choices": ["a", "b"], "gold": 1},
    {"question": "two", "choices": ["a", "b", "c", "d"], "gold": 0},
]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # Of the harness's 12,000 YAMLs, which take ten seconds to read, one family.
    manager = import_module("lm_eval.tasks.manager")
    monkeypatch.setattr(manager, "__file__", str(Path(manager.__file__).parent / "lambada" / "manager.py"))


@pytest.fixture
def tasks_dir(tmp_path):
    directory = tmp_path / "tasks"
    (directory / "deep" / "data").mkdir(parents=True)
    write(directory / "deep", "good", "data/good.jsonl")
    (directory / "deep" / "data" / "good.jsonl").write_text("".join(json.dumps(d) + "\n" for d in DOCUMENTS))
    return directory


def write(directory, name, file):
    (directory / f"{name}.yaml").write_text(CHOICE.format(name=name, file=file))


def load(tasks_dir, *tasks):
    return load_tasks(HarnessConfig(tasks=list(tasks)), str(tasks_dir))


def test_data_files_are_relative_to_the_yaml(tasks_dir, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    loaded = load(tasks_dir, "good")
    assert loaded.failed == {}
    task = loaded.found["good"]["tasks"]["good"]
    assert [document["question"] for document in task.eval_docs] == ["one", "two"]
    assert chance_level(task, list(task.eval_docs)) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_parquet_too(tasks_dir):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(DOCUMENTS), tasks_dir / "docs.parquet")
    text = CHOICE.format(name="columns", file="docs.parquet").replace("dataset_path: json", "dataset_path: parquet")
    (tasks_dir / "columns.yaml").write_text(text)
    loaded = load(tasks_dir, "columns", "good")
    assert loaded.hashes["columns"] != loaded.hashes["good"]  # the name of the task is part of it
    assert [len(found["tasks"]) for found in loaded.found.values()] == [1, 1]


def test_a_hash_changes_with_documents_and_form_and_with_nothing_else(tasks_dir, tmp_path):
    first = load(tasks_dir, "good").hashes["good"]
    tasks_dir.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert load(moved, "good").hashes["good"] == first
    yaml = moved / "deep" / "good.yaml"
    yaml.write_text(yaml.read_text().replace("{{question}}", "Q: {{question}}"))
    assert load(moved, "good").hashes["good"] != first
    yaml.write_text(yaml.read_text().replace("Q: {{question}}", "{{question}}"))
    data = moved / "deep" / "data" / "good.jsonl"
    data.write_text(data.read_text().replace("two", "three"))
    assert load(moved, "good").hashes["good"] != first


def test_groups_find_their_local_tasks(tasks_dir):
    (tasks_dir / "both.yaml").write_text("group: both\ntask: [good]\naggregate_metric_list: [{metric: acc}]\n")
    loaded = load(tasks_dir, "both")
    assert list(loaded.found["both"]["tasks"]) == ["good"]
    assert not loaded.failed


def test_settings_can_replace_the_tasks_own(tasks_dir):
    task = load(tasks_dir, {"task": "good", "doc_to_text": "Q: {{question}}"}).found["good"]["tasks"]["good"]
    assert task.doc_to_text(DOCUMENTS[0]) == "Q: one"


def test_missing_data_are_named_and_the_others_load(tasks_dir):
    write(tasks_dir, "absent", "none.jsonl")
    loaded = load(tasks_dir, "absent", "good")
    assert list(loaded.found) == ["good"]
    assert str(tasks_dir / "none.jsonl") in loaded.failed["absent"]


def test_what_the_hub_would_have_is_named_with_how_to_get_it(tasks_dir):
    failed = check_tasks(HarnessConfig(tasks=["lambada_openai", "good"]), str(tasks_dir))
    assert list(failed) == ["lambada_openai"]
    assert "EleutherAI/lambada_openai" in failed["lambada_openai"]
    assert "load_dataset('EleutherAI/lambada_openai', 'default')" in failed["lambada_openai"]


def test_all_that_is_wrong_with_a_directory_is_told_at_once(tasks_dir):
    (tasks_dir / "broken.yaml").write_text("task: [")
    (tasks_dir / "nameless.yaml").write_text("dataset_path: json\n")
    write(tasks_dir, "other", "x.jsonl")
    (tasks_dir / "again.yaml").write_text((tasks_dir / "other.yaml").read_text())
    with pytest.raises(ConfigError) as error:
        load(tasks_dir, "good")
    for said in ("broken.yaml is no task", "nameless.yaml is no task", "both called other"):
        assert said in str(error.value)


def test_unknown_names_are_told_with_near_ones(tasks_dir):
    with pytest.raises(ConfigError) as error:
        load(tasks_dir, "god", "good")
    assert "no task god; did you mean good" in str(error.value)


@pytest.mark.parametrize("make", [lambda d: d / "nowhere", lambda d: d / "deep" / "data"])
def test_directories_without_tasks(tasks_dir, make):
    with pytest.raises(ConfigError, match="tasks_dir"):
        load(make(tasks_dir), "good")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tasks": [3]}, "neither the name of a task"),
        ({"tasks": ["a", "a"]}, "twice"),
        ({"tasks": ["a"], "limit": 0}, "above 0"),
        ({"tasks": ["a"], "bootstrap_iters": -1}, "negative"),
        ({"tasks": ["a"], "batch_tokens": 0}, "below 1"),
    ],
)
def test_settings_out_of_range(wrong, said):
    assert said in " ".join(map(str, HarnessConfig(**wrong).problems()))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "eval").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_load(path):
    config = load_config(EvalAppConfig, [f"config={path}", "ckpt=x"])
    assert config.context == 256
    assert config.harness.tasks


def test_the_papers_tasks_are_in_the_harness():
    from lm_eval.tasks import TaskManager

    config = load_config(EvalAppConfig, [f"config={ROOT}/configs/eval/paper.yaml", "ckpt=x"])
    home = Path(import_module("lm_eval.tasks").__file__).parent
    folders = [home / name for name in ("lambada", "wikitext", "winogrande", "hellaswag", "arc", "openbookqa")]
    known = TaskManager(include_defaults=False, include_path=folders).task_index
    assert set(config.harness.tasks) <= set(known)
