"""Training the runs of a sweep here, with a program that only pretends to train."""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from topklm.config import load_config, to_dict
from topklm.errors import EXIT_PREEMPTED, ConfigError
from topklm.launch import attempt, local, plan_runs, run_sweep
from topklm.launch.attempt import Place, arguments, command
from topklm.launch.check import check_runs
from topklm.launch.config import SweepConfig
from topklm.launch.sweep import INDEX
from topklm.train import TrainConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    """apps.train is fake_train, and the data are not looked at."""
    monkeypatch.chdir(ROOT)
    start = attempt.subprocess.Popen
    pretend = [sys.executable, "-m", "tests.unit.launch.fake_train"]
    monkeypatch.setattr(attempt.subprocess, "Popen", lambda args, **kwargs: start([*pretend, args[-1]], **kwargs))
    monkeypatch.setattr("topklm.launch.sweep.check_runs", lambda runs, ranks: None)
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(local, "_PATIENCE_SECONDS", 0.05)


def starts(config, name):
    path = Path(config.dump_dir) / name / "starts"
    return len(path.read_text()) if path.exists() else 0


RATE = "lr{optim.lr}"


def rates(*values):
    return {"grid": {"optim.lr": [float(value) for value in values]}, "run_name": RATE}


def test_every_run_once_and_nothing_twice(make_sweep):
    config = make_sweep(grid={"topk.k": [4, 8]}, twins=True, max_parallel=2)
    assert run_sweep(config) == 0
    assert [starts(config, name) for name in ("dense", "k4", "k8")] == [1, 1, 1]
    assert run_sweep(config) == 0
    assert [starts(config, name) for name in ("dense", "k4", "k8")] == [1, 1, 1]
    assert "training k4" in (Path(config.dump_dir) / "k4" / "output.log").read_text()


def test_a_failing_run_is_survived_told_and_tried_again(make_sweep, caplog):
    config = make_sweep(**rates(4, 1))
    assert run_sweep(config) == 1
    assert "lr4.0 failed: exit code 4 (a loss or gradient was not finite)" in caplog.text
    assert "the loss is not finite" in caplog.text
    assert "1 of 2 runs failed; the same command tries them again" in caplog.text
    outcome = json.loads((Path(config.dump_dir) / "lr4.0" / "outcome.json").read_text())
    assert (outcome["state"], outcome["exit_code"], outcome["last_lines"][-1]) == (
        "failed",
        4,
        "the loss is not finite",
    )
    assert run_sweep(config) == 1
    assert (starts(config, "lr4.0"), starts(config, "lr1.0")) == (2, 1)


def test_a_signal_is_passed_on_the_runs_save_and_the_next_start_goes_on(make_sweep):
    before = signal.getsignal(signal.SIGINT)
    config = make_sweep(**rates(75, 1))
    interrupt(Path(config.dump_dir) / "lr75.0" / "ready", signal.SIGINT)
    assert run_sweep(config) == EXIT_PREEMPTED
    # The second run was not begun any more.
    assert (starts(config, "lr75.0"), starts(config, "lr1.0")) == (1, 0)
    assert run_sweep(config) == 0
    assert (starts(config, "lr75.0"), starts(config, "lr1.0")) == (2, 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_kills(make_sweep, caplog):
    config = make_sweep(**rates(9))
    interrupt(Path(config.dump_dir) / "lr9.0" / "ready", signal.SIGTERM, signal.SIGTERM)
    assert run_sweep(config) == EXIT_PREEMPTED
    assert "the runs are killed" in caplog.text
    worker = Path("/proc", (Path(config.dump_dir) / "lr9.0" / "worker").read_text(), "stat")
    assert not worker.exists() or " Z " in worker.read_text()


def test_a_terminal_that_closes_says_so_twice_and_the_runs_save(make_sweep, monkeypatch):
    """The kernel and the shell each send SIGHUP."""
    monkeypatch.setattr(local, "_POLL_SECONDS", 0.3)
    config = make_sweep(**rates(75))
    interrupt(Path(config.dump_dir) / "lr75.0" / "ready", signal.SIGHUP, signal.SIGHUP, pause=0.01)
    assert run_sweep(config) == EXIT_PREEMPTED
    assert (Path(config.dump_dir) / "lr75.0" / "checkpoints").exists()


def test_a_run_of_another_process_is_waited_for(make_sweep, caplog):
    config = make_sweep(**rates(1, 2))
    busy = Path(config.dump_dir) / "lr1.0"
    busy.mkdir(parents=True)
    file = (busy / ".lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    threading.Thread(target=lambda: (wait_for(busy.parent / "lr2.0" / "starts"), file.close())).start()
    assert run_sweep(config) == 0
    assert "lr1.0: another process is training it; it is waited for" in caplog.text
    assert (starts(config, "lr1.0"), starts(config, "lr2.0")) == (1, 1)


def test_a_run_that_another_process_took_in_the_same_moment_is_no_failure(make_sweep):
    config = make_sweep(**rates(22))
    run = Path(config.dump_dir) / "lr22.0"

    def other():
        wait_for(run / "ready")
        with (run / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            wait_for(run / "outcome.json")
            time.sleep(0.3)

    threading.Thread(target=other).start()
    assert run_sweep(config) == 0
    assert starts(config, "lr22.0") == 2


def test_the_index_has_what_is_needed_to_train_each_run_alone(make_sweep):
    config = make_sweep(grid={"topk.k": [4, 8]}, seeds=[3], twins=True)
    run_sweep(config)
    index = json.loads((Path(config.dump_dir) / INDEX).read_text())
    assert index["swept"] == ["topk.k"]
    entry = index["runs"][1]
    yaml = Path(config.dump_dir) / "k4-s3" / "run.yaml"
    assert entry["command"] == f"python -m apps.train config={yaml}"
    assert (entry["name"], entry["twin"], entry["seed"], entry["swept"]) == ("k4-s3", "dense-s3", 3, {"topk.k": 4})
    assert load_config(TrainConfig, [f"config={yaml}"]) == plan_runs(config)[1].config


def test_everything_wrong_with_any_run_is_told_before_one_starts(make_sweep, monkeypatch):
    monkeypatch.setattr("topklm.launch.sweep.check_runs", check_runs)
    config = make_sweep(**rates(1, 2))
    first = plan_runs(config)[0]
    place = first.config.checkpoint_dir / "0000000020"
    place.mkdir(parents=True)
    (place / "params.json").write_text(json.dumps({**to_dict(first.config), "seed": 1}))
    with pytest.raises(ConfigError) as caught:
        run_sweep(config)
    said = str(caught.value)
    assert "lr1.0: is finished" in said
    assert "seed is 42 now and was 1" in said
    assert "nowhere" in said  # the data, of the other run
    assert starts(config, "lr2.0") == 0


def test_an_error_of_the_sweep_itself_stops_what_runs(make_sweep, monkeypatch):
    config = make_sweep(**rates(75), max_parallel=2)
    ready = Path(config.dump_dir) / "lr75.0" / "ready"

    def broken(self):
        if ready.exists():
            raise OSError("disk full")

    monkeypatch.setattr(local.SweepProgress, "update", broken)
    with pytest.raises(OSError, match="disk full"):
        run_sweep(config)
    wait_for(ready.parent / "checkpoints")


def test_commands_for_one_device_several_and_several_nodes(make_sweep):
    (run,) = plan_runs(make_sweep())
    assert arguments(run, Place()) == ["apps.train", f"config={run.yaml}"]
    one_node = arguments(run, Place(gpus=8))
    assert one_node[:2] == ["torch.distributed.run", "--standalone"]
    assert "--signals-to-handle=SIGTERM,SIGUSR1,SIGUSR2" in one_node
    assert one_node[-4:] == ["--nproc-per-node=8", "-m", "apps.train", f"config={run.yaml}"]
    nodes = arguments(run, Place(gpus=8, nodes=2, rendezvous="host:20001", job="7"))
    assert {"--nnodes=2", "--rdzv-endpoint=host:20001", "--rdzv-id=7", "--rdzv-backend=c10d"} <= set(nodes)


def test_a_command_names_what_it_sets(make_sweep, monkeypatch):
    monkeypatch.undo()
    (run,) = plan_runs(make_sweep())
    place = Place(gpus=2, devices=("4", "5"), threads=3)
    assert command(run, place).startswith("OMP_NUM_THREADS=3 CUDA_VISIBLE_DEVICES=4,5 torchrun --standalone ")


def test_places_share_threads_and_gpus(monkeypatch):
    def settings(**changes):
        return SweepConfig(base_config="b", dump_dir="d", **changes)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert local.places(settings()) == [Place()]
    assert local.places(settings(max_parallel=3)) == [Place(threads=2)] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert local.places(settings(max_parallel=2)) == [Place()] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    devices = [place.devices for place in local.places(settings(max_parallel=2, gpus_per_run=2))]
    assert devices == [("3", "5"), ("6", "7")]
    with pytest.raises(ConfigError, match="need 6; there are 4"):
        local.places(settings(max_parallel=3, gpus_per_run=2))


def wait_for(path, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


def interrupt(ready, *signals, pause=0.3):
    """Send signals to this process as soon as `ready` exists, one after the other."""

    def send():
        wait_for(ready)
        for signum in signals:
            os.kill(os.getpid(), signum)
            time.sleep(pause)

    threading.Thread(target=send).start()
