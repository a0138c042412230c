"""Runs as jobs of submitit, with its executor for this machine."""

import json
import os
import time
from pathlib import Path

import pytest

from topklm.errors import ConfigError
from topklm.launch import SlurmConfig, plan_runs
from topklm.launch.slurm import JOBS, parameters, submit
from topklm.launch.state import state_of

ROOT = Path(__file__).parents[3]


def test_what_sbatch_is_told(make_sweep):
    settings = SlurmConfig(partition="gpu", more={"exclusive": True}, setup=["module load cuda"], time_minutes=60)
    told = parameters(make_sweep(gpus_per_run=8, slurm=settings), settings)
    assert told == {
        "name": "sweep", "timeout_min": 60, "nodes": 1, "tasks_per_node": 1, "gpus_per_node": 8,
        "slurm_partition": "gpu", "slurm_array_parallelism": 256, "slurm_signal_delay_s": 120,
        "slurm_setup": ["module load cuda"], "slurm_additional_parameters": {"exclusive": True},
    }  # fmt: skip


@pytest.fixture
def submitit(monkeypatch, tmp_path):
    """The package; apps.train of its jobs is fake_train, by a package `apps` that stands before ours."""
    package = pytest.importorskip("submitit")
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "__init__.py").touch()
    (tmp_path / "apps" / "train.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from tests.unit.launch.fake_train import main\n"
        "sys.exit(main(Path(sys.argv[1].removeprefix('config='))))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return package


def wait_until(holds, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert holds()


def test_jobs_train_the_runs_and_a_preempted_one_is_queued_again(make_sweep, submitit, tmp_path):
    config = make_sweep(
        grid={"optim.lr": [1.0, 4.0, 75.0]}, run_name="lr{optim.lr}", slurm=SlurmConfig(cluster="local")
    )
    runs = plan_runs(config)
    jobs = submit(runs, config)
    assert json.loads((tmp_path / "sweep" / "slurm" / JOBS).read_text()) == jobs
    assert list(jobs) == ["lr1.0", "lr4.0", "lr75.0"]
    good, bad, slow = runs
    wait_until(lambda: (slow.dump_dir / "ready").exists())
    # What SLURM sends before the time limit and at a preemption: the run saves, the job is queued again and goes on.
    submitit.local.local.LocalJob(
        tmp_path / "sweep" / "slurm" / "%j", jobs["lr75.0"], process=_Process(jobs["lr75.0"])
    )._interrupt()
    wait_until(lambda: state_of(slow).state == "finished")
    assert (slow.dump_dir / "starts").read_text() == "xx"
    wait_until(lambda: state_of(good).state == "finished" and state_of(bad).state == "failed")
    log = next((tmp_path / "sweep" / "slurm" / jobs["lr4.0"]).glob("*.err"))
    wait_until(lambda: "lr4.0 failed: exit code 4" in log.read_text())


class _Process:
    """As much of a Popen as submitit needs to send a signal to the controller of a job of this machine."""

    def __init__(self, pid):
        self.pid = int(pid)

    def send_signal(self, signum):
        # The controller passes on nothing but SIGTERM: the job's own process is its child.
        (child, *_) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        os.kill(int(child), signum)

    def poll(self):
        return None


def test_without_slurm_it_says_so(make_sweep, submitit, monkeypatch):
    monkeypatch.setenv("PATH", "")
    config = make_sweep(slurm=SlurmConfig())
    with pytest.raises(ConfigError, match="SLURM cannot be reached"):
        submit(plan_runs(config), config)
