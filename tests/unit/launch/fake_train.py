"""Stands for apps.train in tests of what starts it: writes the checkpoints of a run at once, or does as it is told.

`python -m tests.unit.launch.fake_train config=RUN_YAML`; the learning rate says what it does: 4 fails with exit code 4,
75 waits for SIGTERM the first time, upon which it "saves" and ends with 75, 9 waits and does not listen (nor
does its worker, which has a session of its own as torchrun's have), 22 finds the first time that another process has
its lock and ends with 2.
"""

import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml


def main(path):
    config = yaml.safe_load(path.read_text())
    directory = Path(config["dump_dir"])
    with (directory / "starts").open("a") as file:
        file.write("x")
    print(f"training {config['name']}", flush=True)
    rate = config["optim"]["lr"]
    if rate == 4:
        print("the loss is not finite", file=sys.stderr)
        return 4
    if rate in (75, 9) and not (directory / "checkpoints").exists():
        stop = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        if rate == 9:
            worker = subprocess.Popen(["sleep", "60"], start_new_session=True)
            (directory / "worker").write_text(str(worker.pid))
        (directory / "ready").touch()
        while not stop or rate == 9:
            time.sleep(0.01)
        save(directory, config, 1)
        return 75
    if rate == 22 and (directory / "starts").read_text() == "x":
        (directory / "ready").touch()
        while True:
            time.sleep(0.01)
            try:
                with (directory / ".lock").open() as file:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except FileNotFoundError:
                continue
            except BlockingIOError:
                return 2
    save(directory, config, config["steps"])
    return 0


def save(directory, config, step):
    place = directory / "checkpoints" / f"{step:010d}"
    place.mkdir(parents=True)
    (place / "params.json").write_text(json.dumps(config))
    (directory / "metrics.jsonl").write_text(json.dumps({"global_step": step, "loss/out": 1.0}) + "\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1].removeprefix("config="))))
