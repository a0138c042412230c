"""Configuration: strict types, every problem at once, the nearest valid key."""

import logging
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
from omegaconf import OmegaConf

from topklm.config import Verbatim, build, describe, load_config, read_yaml, save_config, to_dict
from topklm.errors import ConfigError, Problem


@dataclass(frozen=True, kw_only=True)
class Inner:
    k: int = 64
    """How many entries are kept."""
    ratio: float = 0.5

    def problems(self):
        if self.k < 1:
            yield Problem("k", f"{self.k} is below 1")


@dataclass(frozen=True, kw_only=True)
class Outer:
    unused_keys: ClassVar[dict[str, str]] = {
        "probe_freq": "there is no probe",
        "gc_freq": "there is no probe",
        "env": "x",
    }
    only_values: ClassVar[dict[str, tuple]] = {"tp_size": (1, "there is no tensor parallelism"), "window": (None, "y")}

    name: str = "run"
    dump_dir: str = "runs/${name}"
    steps: int = 10
    fast: bool = False
    mode: Literal["blend", "relu"] = "blend"
    topk: Inner | None = None
    optim: Inner = field(default_factory=Inner)
    sources: dict[str, float] = field(default_factory=dict)
    many: dict[str, Inner] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    limit: int | float = 5


def load(tmp_path, text, *dotlist):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(Outer, [f"config={path}", *dotlist])


def problems(tmp_path, text, *dotlist):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *dotlist)
    return {problem.key: problem.message for problem in caught.value.problems}


def test_defaults_then_file_then_dotlist(tmp_path):
    config = load(tmp_path, "steps: 20\noptim: {k: 3}\nsources: {a: 1}", "steps=30", "sources.b=2.5", "name=x")
    assert (config.steps, config.optim.k, config.optim.ratio) == (30, 3, 0.5)
    assert config.sources == {"a": 1.0, "b": 2.5}
    assert config.dump_dir == "runs/x"


def test_every_problem_is_told_at_once(tmp_path):
    found = problems(
        tmp_path,
        "name: 7\nsteps: 1.5\nfast: 1\nmode: blnd\nstep: 3\noptim: {k: 0, ratoi: 1}\ntags: one",
        "k=3",
        "nonsense",
        "name.x=1",
    )
    assert set(found) == {
        "name", "steps", "fast", "mode", "step", "optim.k", "optim.ratoi", "tags", "k", "nonsense", "name.x",
    }  # fmt: skip
    assert "quote it: '7'" in found["name"]
    assert "did you mean blend?" in found["mode"]
    assert "did you mean steps?" in found["step"]
    assert "did you mean optim.ratio?" in found["optim.ratoi"]
    assert "did you mean topk.k?" in found["k"]
    assert "below 1" in found["optim.k"]


def test_a_rule_does_not_blame_a_key_whose_value_was_refused(tmp_path):
    assert problems(tmp_path, "optim: {k: many}") == {"optim.k": "'many' is not a whole number"}


@pytest.mark.parametrize("text", ["topk: null", "steps: 10"])
def test_a_dotlist_key_under_a_null_section_is_an_error(tmp_path, text):
    found = problems(tmp_path, text, "topk.k=8")
    assert "topk={k: 8}" in found["topk.k"]
    assert load(tmp_path, text, "topk={k: 8}").topk == Inner(k=8)
    assert load(tmp_path, "topk: {k: 4}", "topk=null").topk is None


def test_types_are_strict_and_whole_numbers_may_be_given_for_numbers(tmp_path):
    config = load(tmp_path, "optim: {ratio: 1}\nlimit: 0.5\nmany: {a: {k: 2}}\ntags: [a, b]", "optim.ratio=1e-4")
    assert config.optim.ratio == 1e-4
    assert isinstance(load(tmp_path, "optim: {ratio: 1}").optim.ratio, float)
    assert (config.limit, config.many["a"].k, config.tags) == (0.5, 2, ["a", "b"])
    assert set(problems(tmp_path, "steps: true\nlimit: x\noptim: 3\nmany: {a: {k: 0}}\nname: null")) == {
        "steps", "limit", "optim", "many.a.k", "name",
    }  # fmt: skip


def test_keys_of_lingua_without_effect_are_warned_of_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(tmp_path, "probe_freq: 2\nenv: {A: b}", "gc_freq=3")
        load(tmp_path, "probe_freq: null")
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().splitlines()[1:] == [
        "  - probe_freq, gc_freq: there is no probe",
        "  - env: x",
    ]


def test_keys_of_lingua_that_would_change_the_result_are_refused_unless_they_ask_for_what_there_is(tmp_path, caplog):
    load(tmp_path, "tp_size: 1\nwindow: null", "tp_size=null")
    assert not caplog.records
    assert problems(tmp_path, "tp_size: 2\nwindow: 512") == {
        "tp_size": "2: there is no tensor parallelism; only 1",
        "window": "512: y; only null",
    }


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(Outer, ["config=" + str(tmp_path / "none.yaml")])
    for text in ("a: [", "- 1", "a: ${nowhere}"):
        with pytest.raises(ConfigError):
            load(tmp_path, text)


def test_round_trip_and_help(tmp_path):
    config = load(tmp_path, "topk: {k: 4}\nsources: {a: 1}")
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(Outer, [f"config={tmp_path / 'saved.yaml'}"]) == config
    assert build(Outer, to_dict(config)) == config
    text = describe(Outer, "train", "Trains.")
    assert "topk.k: int = 64" in text
    assert "many.<name>.k: int = 64" in text
    assert "How many entries are kept." in text


def test_a_file_overlays_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text("steps: 5\nname: base\ntopk: {k: 3}\noptim: {k: 2, ratio: 0.1}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mid.yaml").write_text("base: ../base.yaml\nname: mid\noptim: {k: 9}")
    config = load(tmp_path, "base: sub/mid.yaml\ntopk: null", "steps=6")
    assert (config.steps, config.name, config.topk, config.optim) == (6, "mid", None, Inner(k=9, ratio=0.1))
    (tmp_path / "base.yaml").write_text("base: sub/mid.yaml")
    with pytest.raises(ConfigError, match="circle"):
        load(tmp_path, "base: base.yaml")


@dataclass(frozen=True, kw_only=True)
class Verse(Inner):
    prompt: Verbatim | None = None
    """Text to go on from."""
    title: str = "none"


@pytest.mark.parametrize(
    "text", ["Once, there: was", "7", "null", "", " a # b ", "[x", "${k}", "{a: 1}", "a=b", "'q' \"r\"", "two\nlines"]
)
def test_verbatim_text_is_taken_as_it_stands(text):
    assert load_config(Verse, [f"prompt={text}", "k=3"]) == Verse(prompt=text, k=3)


def test_verbatim_text_of_a_file_is_yaml_and_help_has_inherited_fields(tmp_path):
    (tmp_path / "c.yaml").write_text("prompt: 'a: ${k}'\nk: 5\n")
    assert load_config(Verse, [f"config={tmp_path / 'c.yaml'}"]).prompt == "a: 5"
    with pytest.raises(ConfigError, match="title"):
        load_config(Verse, ["title=7"])
    text = describe(Verse, "verse", "Goes on.")
    assert "How many entries are kept." in text
    assert "Text to go on from." in text


def test_two_that_write_one_file_at_once_do_not_take_it_from_each_other(tmp_path, monkeypatch):
    write, path = OmegaConf.save, tmp_path / "run.yaml"

    def interrupted(config, part):
        write(config, part)
        monkeypatch.setattr(OmegaConf, "save", write)
        save_config({"a": 2}, path)

    monkeypatch.setattr(OmegaConf, "save", interrupted)
    save_config({"a": 1}, path)
    assert read_yaml(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
