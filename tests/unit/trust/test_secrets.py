"""Keys and passwords: in no log, saved configuration, checkpoint, bundle or result."""

from pathlib import Path

import pytest

from tests.unit.wrong_inputs.case import Case, run
from topklm.config.secrets import secret_problems

SECRETS = {
    "WANDB_API_KEY": "planted-wandb-0123456789abcdef",
    "HF_TOKEN": "hf_plantedplantedplantedplanted",
    "OPENAI_API_KEY": "sk-planted-0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "planted/aws/0123456789abcdef",
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
}  # fmt: skip
PLANTED = [value for value in SECRETS.values() if len(value) > 1]


def start(program, *args):
    case = Case(mistake="", program=program, args=args, environment=SECRETS, key="", value="", remedy="")
    return run(case)


def files():
    return [path for path in Path().rglob("*") if path.is_file()]


def test_nothing_that_a_pipeline_writes_or_says_holds_one(place):
    """Prepare, train, resume, collect, measure, generate, export, with keys in the environment."""
    commands = [
        ("prepare", "config=prepare.yaml"),
        ("train", "config=train.yaml", "steps=2", "checkpoint.dump.every=1", "logging.tensorboard=false"),
        ("train", "config=train.yaml", "steps=3"),
        ("collect", "ckpt=new", "tokens=64", "context=16"),
        ("entropy", "bundle=bundle"),
        ("generate", "ckpt=new", "prompt=a", "max_tokens=3", "out=texts.json"),
        ("export", "ckpt=new", "to=lingua", "out=exported"),
    ]
    before = set(files())
    for program, *args in commands:
        found = start(program, *args)
        assert found.exit_code == 0, found.log
        assert not any(secret in found.log for secret in PLANTED)
    written = [path for path in files() if path not in before]
    assert len(written) > 30
    for path in written:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in PLANTED), path


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (("train", "config=train.yaml", "name=${oc.env:WANDB_API_KEY}"), "name"),
        (("train", "config=train.yaml", "logging.wandb={notes: 'my ${oc.env:WANDB_API_KEY}'}"), "logging.wandb.notes"),
        (("train", "config=train.yaml", "data.root_dir=https://me:planted@host/data"), "data.root_dir"),
        (("prepare", "config=prepare.yaml", "sources.web={kind: hf, path: json, data_files: ['s3://a:planted@b/c']}"),
         "sources.web.data_files[0]"),
        (("label llm", "bundle=bundle", "base_url=https://me:planted@host/v1", "model=m", "neurons=[1:3]"), "base_url"),
        (("generate", "ckpt=run", "prompt=tell me hf_plantedplantedplantedplanted"), "prompt"),
    ],
)  # fmt: skip
def test_a_secret_in_a_configuration_is_refused_and_not_shown(place, args, key):
    before = set(files())
    found = start(*args)
    assert found.exit_code == 2
    assert f"{key}: " in found.message
    assert "would be saved" in found.message
    assert "planted" not in found.log
    assert set(files()) == before


@pytest.mark.parametrize(
    "text", ["https://host/path", "s3://bucket/a@b", "a@b.c", "http://host:80/x", "git@host:x/y", ""]
)
def test_addresses_without_a_password_are_taken(text):
    assert list(secret_problems({"a": [text]})) == []


def test_short_values_of_the_environment_are_no_secrets(monkeypatch):
    monkeypatch.setenv("SORT_KEY", "name")
    assert list(secret_problems({"name": "name"})) == []
