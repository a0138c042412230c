"""Meta Lingua's configuration files, key by key: honoured, warned of, or refused with the reason."""

from __future__ import annotations

import ast
import importlib.util
import logging
from pathlib import Path

import pytest

from apps.generate import GenerateConfig
from tests.unit.config.lingua_keys import (
    EVAL_APP_KEYS,
    KEYS,
    NULL_SECTIONS,
    PAGE,
    REFUSED,
    REMARKS,
    Key,
    page,
    refusal,
    verdict,
)  # fmt: skip
from topklm.config import describe, load_config, read_yaml, save_config, to_dict
from topklm.errors import ConfigError
from topklm.evaluate.app_config import EvalAppConfig
from topklm.train import TrainConfig

ALL = Path(__file__).with_name("lingua_all.yaml")


def flat(tree: dict, path: str = "") -> dict:
    leaves = {}
    for key, value in tree.items():
        inner = isinstance(value, dict) and f"{path}{key}" not in ("data.sources", "eval.wandb")
        leaves |= flat(value, f"{path}{key}.") if inner else {f"{path}{key}": value}
    return leaves


def load(path: Path, *args: str) -> TrainConfig:
    return load_config(TrainConfig, [f"config={path}", *args])


def write(tmp_path: Path, name: str, value: str) -> Path:
    """The file of all keys with one set otherwise."""
    lines = [f"base: {ALL}"]
    lines += [f"{'  ' * depth}{part}:" for depth, part in enumerate(name.split("."))]
    (tmp_path / "one.yaml").write_text("\n".join(lines) + f" {value}\n")
    return tmp_path / "one.yaml"


def test_a_file_with_every_key_loads_and_what_is_honoured_arrives(caplog) -> None:
    there = flat(read_yaml(ALL))
    assert there.keys() == {key.name for key in KEYS}
    config = flat(to_dict(load(ALL)))
    (warning,) = caplog.records
    for key in KEYS:
        found = verdict(key)
        if found.kind == "honoured":
            assert config[key.name] == there[key.name], key.name
        elif found.kind == "warned":
            named = key.name.split(".")
            names = {".".join(named[: i + 1]) for i in range(len(named))}
            assert any(f" {name}" in warning.getMessage() for name in names), key.name
            assert found.remark in warning.getMessage()
        else:
            assert key.name not in warning.getMessage()


@pytest.mark.parametrize("key", [key for key in KEYS if verdict(key).kind != "warned"], ids=lambda key: key.name)
def test_a_key_left_out_means_what_it_means_in_lingua_or_the_table_says_otherwise(key: Key) -> None:
    found = verdict(key)
    if found.kind == "refused":
        assert refusal(key.name, key.default) is None
        assert refusal(key.name, None) is None
    elif found.default != key.default:
        assert key.name in REMARKS


def test_remarks_are_about_keys_that_are_honoured() -> None:
    honoured = {key.name for key in KEYS if verdict(key).kind == "honoured"}
    assert REMARKS.keys() <= honoured
    assert REFUSED.keys() <= {key.name for key in KEYS}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("distributed.tp_size", "2", "2: there is no tensor parallelism here; only 1"),
        ("distributed.float8_recipe", "rowwise", "no float8 training"),
        ("distributed.model_dtype", "fp16", "fp16 needs loss scaling"),
        ("model.sliding_window", "512", "no sliding-window attention"),
        ("data.n_views", "3", "no prediction of several tokens"),
        ("data.tokenizer.name", "mock", "not one of sp, tiktoken, hf, bytes"),
        ("eval.harness.apply_chat_template", "true", "no chat template"),
        ("eval.harness.predict_only", "true", "tasks are scored"),
    ],
)
def test_what_would_change_the_result_is_refused_with_the_reason(
    tmp_path: Path, name: str, value: str, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path, name, value))
    assert [problem.key for problem in error.value.problems] == [name]
    assert message in str(error.value)


def test_keys_that_lingua_does_not_know_either_are_refused_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path, "data.n_view", "2"), "optim.warmpu=3", "distributed.tp_size=2", "probe_frq=1")
    found = {problem.key: problem.message for problem in error.value.problems}
    assert found.keys() == {"data.n_view", "optim.warmpu", "distributed.tp_size", "probe_frq"}
    assert "did you mean optim.warmup?" in found["optim.warmpu"]


def test_evaluation_follows_the_checkpoints_that_are_for_it(tmp_path: Path) -> None:
    config = load(ALL, "steps=12000", "checkpoint.eval.every=5000")
    assert [step for step in range(1, 12001) if config.evaluates_at(step)] == [5000, 10000, 12000]
    config = load(ALL, "steps=12000", "eval.every=6000", "checkpoint.eval.every=5000")
    assert [step for step in range(1, 12001) if config.evaluates_at(step)] == [6000, 12000]
    config = load(ALL, "steps=12000", "checkpoint.eval.every=0")
    assert [step for step in range(1, 12001) if config.evaluates_at(step)] == [12000]
    assert not load(ALL, "eval=null").evaluates_at(60_000)


def test_linguas_evaluation_of_a_checkpoint_loads_too(tmp_path: Path, caplog) -> None:
    save_config(read_yaml(ALL)["eval"], tmp_path / "eval.yaml")
    config = load_config(EvalAppConfig, [f"config={tmp_path}/eval.yaml"])
    (warning,) = caplog.records
    kinds = {key.name: verdict(key, EvalAppConfig).kind for key in EVAL_APP_KEYS}
    assert all(key.split(".")[0] in warning.getMessage() for key, kind in kinds.items() if kind == "warned")
    assert (kinds["ckpt_dir"], kinds["dump_dir"], kinds["harness.tasks"]) == ("honoured",) * 3
    assert config.checkpoints == ["/checkpoints/lingua/0000000100"]
    assert config.results_dir == "/evals"
    with pytest.raises(ConfigError) as error:
        load_config(EvalAppConfig, [f"config={tmp_path}/eval.yaml", "ckpt=x", "out=y"])
    assert {problem.key for problem in error.value.problems} == {"ckpt_dir", "dump_dir"}


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        (EvalAppConfig, {"ckpt_dir": "ckpt", "dump_dir": "out"}),
        (GenerateConfig, {"max_gen_len": "max_tokens", "until": "stop"}),
    ],
)
def test_help_says_what_linguas_keys_are_called_here(schema: type, names: dict[str, str]) -> None:
    text = describe(schema, "x", "x")
    for lingua, ours in names.items():
        entry = text.partition(f"\n  {lingua}: ")[2].splitlines()[1].strip()
        assert entry.startswith(f"Meta Lingua's name of {ours}.")


def test_the_tables_of_the_page_are_those_of_now() -> None:
    assert page() == PAGE.read_text(), "run: python -m tests.unit.config.lingua_keys"


# Against genuine Lingua, where a checkout is on PYTHONPATH. It is read, not imported.

SOURCES = [
    "apps/main/train.py", "apps/main/eval.py", "apps/main/generate.py", "apps/main/transformer.py", "lingua/data.py",
    "lingua/tokenizer.py", "lingua/optim.py", "lingua/transformer.py", "lingua/distributed.py", "lingua/checkpoint.py",
    "lingua/profiling.py", "lingua/metrics.py",
]  # fmt: skip


@pytest.fixture
def genuine() -> Path:
    """Lingua's checkout; skipped where there is none. (A package of that name that is not Meta's exists too.)"""
    spec = importlib.util.find_spec("lingua")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place).parent / "apps/main/train.py").is_file():
            return Path(place).parent
    pytest.skip("no Meta Lingua on PYTHONPATH")


def fields_of(classes: dict[str, ast.ClassDef], name: str) -> dict[str, tuple[str, ast.expr | None]]:
    """{field: (annotation, default)} of a dataclass in source text, inherited ones first."""
    found = {}
    for parent in classes[name].bases:
        if isinstance(parent, ast.Name) and parent.id in classes:
            found |= fields_of(classes, parent.id)
    for line in classes[name].body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            found[line.target.id] = (ast.unparse(line.annotation), line.value)
    return found


def keys_of(classes: dict[str, ast.ClassDef], name: str, path: str = "") -> list[Key]:
    keys = []
    for field, (annotation, value) in fields_of(classes, name).items():
        optional = annotation.startswith("Optional[")
        inner = annotation.removeprefix("Optional[").removesuffix("]") if optional else annotation
        if path + field == "eval":
            inner = "EvalArgs"  # annotated Any, and built from this class
        if inner in classes:
            is_null = isinstance(value, ast.Constant) and value.value is None
            assert is_null == (path + field in NULL_SECTIONS)
            keys += keys_of(classes, inner, f"{path}{field}.")
            continue
        factory = ast.unparse(value.keywords[0].value) if isinstance(value, ast.Call) else None
        default = {"dict": {}, "list": []}[factory] if factory else ast.literal_eval(value)
        kind = inner.split("[")[0].lower()
        if kind == "union":
            kind = inner.removeprefix("Union[").removesuffix("]").replace(", ", "|")
        keys.append(Key(path + field, kind + "?" * optional, default))
    return keys


def test_the_facts_are_genuine_linguas(genuine: Path) -> None:
    classes = {}
    for source in SOURCES:
        tree = ast.parse((genuine / source).read_text())
        classes |= {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    assert sorted(keys_of(classes, "TrainArgs"), key=repr) == sorted(KEYS, key=repr)


@pytest.mark.parametrize("name", ["debug", "llama_1B", "llama_7B"])
def test_genuine_linguas_files_load(genuine: Path, name: str, caplog) -> None:
    path = genuine / "apps/main/configs" / f"{name}.yaml"
    with pytest.raises(ConfigError) as error:
        load(path)
    assert [problem.key for problem in error.value.problems] == ["dump_dir"]  # which they leave to the user
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        config = load(path, "dump_dir=x")
    (warning,) = caplog.records
    assert "profiling: " in warning.getMessage()
    there = flat(read_yaml(path))
    here = flat(to_dict(config))
    honoured = {key.name for key in KEYS if verdict(key).kind == "honoured"} & there.keys()
    assert len(honoured) > 25
    assert {key: here[key] for key in honoured} == {key: there[key] for key in honoured}


def test_genuine_linguas_evaluation_file_loads(genuine: Path, caplog) -> None:
    path = genuine / "apps/main/configs/eval.yaml"
    config = load_config(EvalAppConfig, [f"config={path}", "ckpt_dir=x", "dump_dir=y"])
    assert config.harness is not None
    assert config.harness.tasks == read_yaml(path)["harness"]["tasks"]
    assert "generator: " in caplog.text
