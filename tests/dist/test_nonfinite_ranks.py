"""One of two ranks meets a NaN: both end with the same code, and the report names the rank that met it."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.programs import ROOT, metrics
from topklm.checkpoint import list_checkpoints
from topklm.errors import NonFiniteError

pytestmark = pytest.mark.dist

CASES = {
    "loss": ("loss", None, []),
    "gradient": ("gradient", 1, ["distributed.model_dtype=bf16"]),
    "activation": ("output", 2, ["distributed.activation_checkpointing=full"]),
    "weight": ("weight", 0, ["distributed.fsdp_type=no_shard"]),
}
QUICK = ["steps=8", "eval=null", "checkpoint.dump.every=2", "data.batch_size=2"]


def start(tiny, dump_dir, poison, *more):
    """Two ranks without torchrun, which would tell only one exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.dist.poisoned_train", json.dumps(poison), *tiny, *QUICK,
               f"dump_dir={dump_dir}", *more]  # fmt: skip
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "x"}
    return [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **common, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip


def end(processes):
    told = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], told


def test_the_rank_that_met_it_is_named_and_all_end_alike(tiny, tmp_path):
    running = {
        where: start(tiny, tmp_path / where, {"where": where, "steps": [4], "rank": 1}, *more)
        for where, (_, _, more) in CASES.items()
    }
    for where, (found, layer, _) in CASES.items():
        codes, told = end(running[where])
        assert codes == [NonFiniteError.exit_code] * 2, told
        report = json.loads((tmp_path / where / "nonfinite.json").read_text())
        assert (report["global_step"], report["found"], report["layer"]) == (5, found, layer), where
        assert report["hit_ranks"] == [1]
        assert [rank["rank"] for rank in report["ranks"]] == [0, 1]
        assert "rank 1" in told[0]
        assert report["ranks"][1]["documents"][0] in told[0]
        assert [int(path.name) for path in list_checkpoints(tmp_path / where / "checkpoints")] == [2, 4]


def test_skipped_steps_are_listed_with_the_rank_and_its_documents_and_a_row_is_bounded(tiny, tmp_path):
    poison = {"where": "loss", "steps": [1, 4, 5, 6], "rank": 1}
    codes, told = end(start(tiny, tmp_path / "run", poison, "on_nonfinite=skip", "max_nonfinite=2"))
    assert codes == [NonFiniteError.exit_code] * 2, told
    assert "step 5 and those after it, more than the max_nonfinite=2 in a row" in told[0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["global_step"], line["ranks"], line["loss"]) for line in lines] == [
        (2, [1], "nan"), (5, [1], "nan"), (6, [1], "nan")
    ]  # fmt: skip
    assert all(name.startswith("sotu/train/") for line in lines for name in line["documents"])
    assert metrics(tmp_path / "run", "optim/skipped_steps")[6] == 3
    assert max(metrics(tmp_path / "run")) == 6
