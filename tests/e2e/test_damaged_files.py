"""Files that were there and are damaged: checkpoints of a run, shards while it reads them, manifests."""

import json
import os
import shutil
import time

import pytest

from tests.programs import assert_same_run, run_app, start_app, wait_for_step
from topklm.checkpoint import list_checkpoints
from topklm.errors import DataError

pytestmark = pytest.mark.e2e


@pytest.fixture
def data(speeches, tmp_path):
    """A copy of the prepared data that may be damaged."""
    shutil.copytree(speeches, tmp_path / "data")
    return tmp_path / "data"


def test_the_last_good_checkpoint_is_used_whatever_happened_to_later_ones(tiny, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    places = {int(path.name): path for path in list_checkpoints(run / "checkpoints")}
    shard = places[24] / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (places[20] / ".metadata").unlink()
    (places[15] / "train_state_00000.json").write_text("{")
    (run / "checkpoints" / "0000000022.tmp").mkdir()
    (run / "checkpoints" / "0000000022.tmp" / "__0_0.distcp").write_bytes(b"half")
    done = run_app("apps.train", *tiny, f"dump_dir={run}")
    for path, why in ((places[24], "SHA-256 differs"), (places[20], ".metadata is missing"), (places[15], "bytes")):
        assert any(str(path) in line and why in line for line in done.stderr.splitlines()), done.stderr
    assert f"resuming from {places[10]}" in done.stderr
    assert "Traceback" not in done.stderr
    assert_same_run(whole, run)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {f"{step:010d}" for step in places} | {f"{step:010d}.broken" for step in (15, 20, 24)}


def test_a_shard_that_becomes_shorter_while_it_is_read(tiny, data, tmp_path):
    """Reading its mapped end would be SIGBUS. Steps are made long: it is shortened in one, not while it is read."""
    run = tmp_path / "run"
    process = start_app("apps.train", *tiny, "steps=5000", "eval=null", "topk.anneal_steps=10", f"dump_dir={run}",
                        "model.dim=384", "checkpoint.dump={every: 3, keep: 2}", f"data.root_dir={data}")  # fmt: skip
    wait_for_step(run, 4, process)
    time.sleep(0.03)
    for shard in (data / "sotu" / "train").glob("*.tokens.npy"):
        os.truncate(shard, 4096)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == DataError.exit_code, stderr
    assert "Traceback" not in stderr
    assert ".tokens.npy has 4096 bytes and had" in stderr
    assert "restore them (data.verify=true checks them), then start the same command" in stderr
    assert list_checkpoints(run / "checkpoints")


def test_a_manifest_that_does_not_fit(tiny, whole, data):
    path = data / "sotu" / "manifest.json"
    manifest = json.loads(path.read_text())
    shard = next(shard for shard in manifest["shards"] if shard["split"] == "train")
    command = ["apps.train", *tiny, f"data.root_dir={data}", f"dump_dir={whole}", "steps=26"]
    shard["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    done = run_app(*command, check=DataError.exit_code)  # it goes on with other data
    assert "fingerprint differs" in done.stderr
    shard["n_tokens"] += 1
    path.write_text(json.dumps(manifest))
    done = run_app(*command, check=DataError.exit_code)
    assert f"{shard['name']}.tokens.npy holds" in done.stderr
    assert "run apps.prepare again" in done.stderr
    assert "Traceback" not in done.stderr
