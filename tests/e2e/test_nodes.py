"""Several nodes on this machine: torchrun agents on loopback, by themselves and under `scripts/train.sbatch`.

What SLURM does is played by programs of its names: they start the batch script's nodes, and note what is queued again.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.programs import ROOT, assert_same_run, children, metrics, run_app, start_app, torchrun, wait_for_step
from topklm.checkpoint import list_checkpoints
from topklm.errors import EXIT_PREEMPTED, PeerError
from topklm.train.exit_record import read_exit

pytestmark = pytest.mark.dist

SRUN = """#!{python}
import os, signal, subprocess, sys, time
command = sys.argv[1:]
while command[0].startswith("--"):
    option = command.pop(0)
    patience = int(option.partition("=")[2]) if option.startswith("--wait") else 0
numbers = range(int(os.environ["SLURM_NNODES"]))
nodes = [subprocess.Popen(command, env={{**os.environ, "SLURM_NODEID": str(n)}}) for n in numbers]
for signum in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(signum, lambda signum, frame: [node.send_signal(signum) for node in nodes])
while all(node.poll() is None for node in nodes):
    time.sleep(0.05)
until = time.monotonic() + patience
while any(node.poll() is None for node in nodes) and time.monotonic() < until:
    time.sleep(0.05)
for node in nodes:
    node.kill()
sys.exit(max(abs(node.wait()) for node in nodes))
"""
SCONTROL = """#!/bin/sh
case "$1 $2" in
    "show hostnames") echo 127.0.0.1; echo 127.0.0.2 ;;
    requeue*) echo "$2" >> "$SLURM_FAKE/requeued" ;;
esac
"""
SQUEUE = """#!/bin/sh
echo "${JOB_STATE:-RUNNING}"
"""
TORCHRUN = """#!/bin/sh
[ "$SRUN_CPUS_PER_TASK" = 7 ] || exit 2
[ -z "$RECORD" ] || echo "{\\"code\\": $RECORD}" > "$SLURM_FAKE/run/exit.json"
exit 1
"""


@pytest.fixture
def slurm(tmp_path):
    """A directory of programs with SLURM's names, and the environment of a job on two nodes."""
    programs = tmp_path / "slurm"
    programs.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL), ("squeue", SQUEUE)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    # Ports are taken by the job's number.
    return {
        **os.environ, "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": str(free_port() - 20_000), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2",
        "SLURM_FAKE": str(tmp_path), "SLURM_CPUS_PER_TASK": "7",
    }  # fmt: skip


def free_port():
    """Of those that the batch script computes from the number of a job."""
    for port in range(20_000 + os.getpid() % 10_000, 40_000):
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def requeued(slurm):
    path = Path(slurm["SLURM_FAKE"]) / "requeued"
    return len(path.read_text().splitlines()) if path.exists() else 0


def submit(slurm, *args, **more):
    return subprocess.Popen(
        ["bash", "scripts/train.sbatch", *map(str, args)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env={**slurm, **more},
    )  # fmt: skip


def kill_node(agent):
    """SIGKILL a torchrun agent and its workers."""
    for pid in (agent, *children(agent)):
        os.kill(pid, signal.SIGKILL)


def test_a_job_goes_on_through_the_end_of_its_time_and_the_loss_of_a_node(tiny, slurm, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    args = [*tiny, "eval=null"]
    run_app(*torchrun(2), "apps.train", *args, f"dump_dir={whole}")

    job = submit(slurm, *args, f"dump_dir={run}")
    wait_for_step(run, 3, job)
    job.send_signal(signal.SIGUSR1)
    _, told = job.communicate(timeout=120)
    assert "it was asked to stop, and saved; queued again" in told
    assert (job.returncode, requeued(slurm), read_exit(run)["code"]) == (0, 1, EXIT_PREEMPTED)
    saved = read_exit(run)["step"]
    assert 3 <= saved < 20

    job = submit(slurm, *args, f"dump_dir={run}", SLURM_RESTART_COUNT="1")
    wait_for_step(run, saved + 1, job)
    srun = children(job.pid)[0]
    kill_node(children(srun)[1])
    _, told = job.communicate(timeout=120)
    assert "lost connection to another rank" in told
    assert f"the same command resumes from step {int(list_checkpoints(run / 'checkpoints')[-1].name)}" in told
    assert "a rank lost another one; queued again" in told
    assert (job.returncode, requeued(slurm), read_exit(run)["code"]) == (0, 2, PeerError.exit_code)

    job = submit(slurm, *args, f"dump_dir={run}", SLURM_RESTART_COUNT="2")
    _, told = job.communicate(timeout=120)
    assert (job.returncode, requeued(slurm), read_exit(run)["code"]) == (0, 2, 0), told
    assert metrics(run) == metrics(whole)
    assert_same_run(run, whole)


@pytest.mark.parametrize(
    ("record", "more", "code", "again", "told"),
    [
        ("0", {}, 0, 0, ""),
        ("75", {}, 0, 1, "asked to stop"),
        ("9", {"SLURM_RESTART_COUNT": "19"}, 0, 1, "lost another one"),
        ("null", {}, 0, 1, "was killed"),
        ("null", {"SLURM_RESTART_COUNT": "20"}, 1, 0, "20 times already (MAX_RESTARTS)"),
        ("75", {"MAX_RESTARTS": "0"}, 1, 0, "not queued again"),
        ("75", {"JOB_STATE": "CANCELLED"}, 1, 0, "not queued again, as the job is CANCELLED"),
        ("4", {}, 4, 0, "failed with code 4"),
        ("", {}, 1, 0, "did not begin"),
    ],
)
def test_what_is_queued_again(slurm, tmp_path, record, more, code, again, told):
    """By the record of the run alone; one of an earlier attempt does not count."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "exit.json").write_text('{"code": 75}')
    (tmp_path / "slurm" / "torchrun").write_text(TORCHRUN)
    (tmp_path / "slurm" / "torchrun").chmod(0o755)
    # A directory without .venv, whose activation would put its torchrun first.
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "train.sbatch", f"dump_dir={tmp_path / 'run'}"], cwd=tmp_path, capture_output=True,
        text=True, env={**slurm, **more, "RECORD": record}, timeout=60,
    )  # fmt: skip
    assert (done.returncode, requeued(slurm)) == (code, again), done.stderr
    assert told in done.stderr


def test_the_batch_script_needs_the_directory_of_the_run(slurm):
    job = submit(slurm, "config=configs/quickstart/topk.yaml")
    assert "give dump_dir=DIR" in job.communicate(timeout=60)[1]
    assert job.returncode == 2


def test_the_node_that_is_left_ends_with_a_message_when_the_first_one_dies(tiny, tmp_path):
    """The first node has the store in which ranks find each other, and the main rank."""
    port, run = free_port(), tmp_path / "run"
    nodes = [
        start_app(
            "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=7",
            f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-conf=is_host={int(node == 0)}", "-m", "apps.train", *tiny,
            f"dump_dir={run}", "eval=null", "steps=400",
        )
        for node in (0, 1)
    ]  # fmt: skip
    wait_for_step(run, 7, nodes[0])
    main = next(node for node in (0, 1) if has_rank_zero(nodes[node].pid))
    kill_node(nodes[main].pid)
    began = time.monotonic()
    _, told = nodes[1 - main].communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert nodes[1 - main].returncode == 1
    nodes[main].communicate()
    assert "lost connection to another rank (" in told
    assert "the same command resumes from step" in told
    assert json.loads((run / "exit.json").read_text())["code"] is None  # its writer was killed


def has_rank_zero(agent):
    """Whether one of a torchrun agent's workers is the main rank."""
    return any(b"\0RANK=0\0" in Path(f"/proc/{pid}/environ").read_bytes() for pid in children(agent))
