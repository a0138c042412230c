"""Killing a run again and again, and comparing all that it computed with a run that was left alone.

The moments are random: any since the start, or while the files say that a checkpoint is being written, completed
(hashed and renamed), or removed. `test_crash.py` kills a few times, `scripts/soak.py` many times.
"""

import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch

from tests.programs import children, metrics, start_app, torchrun, weights
from topklm.checkpoint import defects, list_checkpoints, step_of

PHASES = ("starting", "training", "writing", "completing", "removing")
SCHEDULE = ["checkpoint.dump={every: 2, keep: 2}"]
"""A checkpoint at every second step, of which two stay: all phases come often."""
_SLOW_DISK = 0.003
"""Makes the phases, which are over in milliseconds on a quick disk, long enough to be met."""


@dataclass
class Tally:
    """What happened to the runs."""

    kills: Counter[str] = field(default_factory=Counter)
    """By the phase that they hit."""
    one_rank: int = 0
    """Kills of a single rank, the others left to themselves."""
    resumes: int = 0
    """Starts that went on from a checkpoint."""
    finished: int = 0
    """Runs that came to their end and were compared."""
    steps: int = 0
    """Logged steps that were compared, those included that a later start did again."""
    mismatches: list[str] = field(default_factory=list)
    """What differs from the run that was left alone, or was lost."""


@dataclass
class Crasher:
    """Kills runs of `args` (of apps.train, without dump_dir) until they have been killed `kills` times and have ended.

    `reference` is the dump directory of the same run, left alone; `root` holds the runs that are killed.
    """

    args: list[str]
    reference: Path
    root: Path
    kills: int
    seed: int = 0
    ranks: int = 1
    moments: Sequence[str] = ()
    """What the first kills are aimed at, of `PHASES`; beyond them it is drawn."""
    lifetime: float = 8.0
    """Seconds after a start within which a kill at any moment falls."""

    def run(self, told=lambda tally: None) -> Tally:
        """All kills; `told` gets the tally after each."""
        rng, tally = random.Random(self.seed), Tally()
        dump_dir, newest = self.root / "run0", 0
        while True:
            process = self._start(dump_dir)
            began = time.time()
            done = tally.kills.total()
            drawn = rng.choice(("any", "any", *PHASES[2:]))
            moment = (*self.moments, *[drawn] * self.kills)[done] if done < self.kills else None
            phase = self._kill(process, dump_dir, began, moment, newest, rng, tally) if moment else None
            stderr = process.communicate(timeout=600)[1]
            tally.resumes += "resuming from" in stderr
            newest = self._look_at_checkpoints(dump_dir, newest, tally)
            if phase is not None:
                tally.kills[phase] += 1
                told(tally)
            elif process.returncode != 0:
                tally.mismatches.append(f"{dump_dir.name} ended with {process.returncode}: {stderr[-2000:]}")
                return tally
            else:
                self._compare(dump_dir, tally)
                if tally.kills.total() >= self.kills:
                    return tally
                dump_dir, newest = self.root / f"run{tally.finished}", 0

    def _start(self, dump_dir):
        job = torchrun(self.ranks) if self.ranks > 1 else []
        command = [*job, "tests.bad_disk", "apps.train", *self.args, *SCHEDULE, f"dump_dir={dump_dir}"]
        return start_app(*command, env={"SLOW_DISK": str(_SLOW_DISK)})

    def _kill(self, process, dump_dir, began, moment, newest, rng, tally):
        """Wait for the moment, kill; the phase that was hit, None if the program had ended by itself."""
        after, until = newest + 2 * rng.randrange(4), began + rng.uniform(0, self.lifetime)
        delay = rng.uniform(0, 0.01)

        def is_now():
            if moment == "any":
                return time.time() >= until
            found, step = saving(dump_dir / "checkpoints")
            return found == moment and step > after and has_begun(dump_dir, began)

        while not is_now():
            if process.poll() is not None:
                return None
            time.sleep(0.001)
        time.sleep(delay)
        workers = children(process.pid) if self.ranks > 1 and process.poll() is None else []
        alone = len(workers) == self.ranks and rng.random() < 0.3
        victims = [rng.choice(workers)] if alone else [process.pid, *workers]
        for pid in victims:
            if process.poll() is None or pid != process.pid:
                os.kill(pid, signal.SIGKILL)
        if not alone and process.wait() != -signal.SIGKILL:
            return None
        tally.one_rank += alone
        found, _ = saving(dump_dir / "checkpoints")
        return found or ("training" if has_begun(dump_dir, began) else "starting")

    def _look_at_checkpoints(self, dump_dir, newest, tally):
        """The step that the next start resumes from; no checkpoint may be broken, and none that was there lost."""
        found = list_checkpoints(dump_dir / "checkpoints")
        for path in found:
            tally.mismatches += [f"{path}: {wrong}" for wrong in defects(path)]
        now = step_of(found[-1]) if found else 0
        if now < newest:
            tally.mismatches.append(f"{dump_dir}: the newest checkpoint was {newest} and is {now}")
        return now

    def _compare(self, dump_dir, tally):
        """Every line of metrics, the superseded ones too, and the weights, bit for bit."""
        tally.finished += 1
        for key in ("loss/out", "optim/grad_norm", "val/loss@32"):
            expected = metrics(self.reference, key)
            if metrics(dump_dir, key) != expected:
                tally.mismatches.append(f"{dump_dir.name}: {key} differs")
            for step, value in [*metrics(dump_dir, key).items(), *_superseded(dump_dir, key)]:
                tally.steps += key == "loss/out"
                if value != expected.get(step):
                    tally.mismatches.append(f"{dump_dir.name}: {key} of step {step} is {value}")
        pairs = zip(weights(self.reference).items(), weights(dump_dir).values(), strict=True)
        tally.mismatches += [f"{dump_dir.name}: {name} differs" for (name, x), y in pairs if not torch.equal(x, y)]


def saving(checkpoints):
    """(what the directory shows to be under way of `PHASES`, at which step); (None, 0) if nothing."""
    names = os.listdir(checkpoints) if checkpoints.is_dir() else []
    newest = max((int(name) for name in names if re.fullmatch(r"\d{10}", name)), default=0)
    for name in names:
        if name.endswith(".tmp"):
            step = int(name.removesuffix(".tmp"))
            if step < newest:
                return "removing", newest
            return "completing" if (checkpoints / name / ".metadata").exists() else "writing", step
    return None, 0


def has_begun(dump_dir, since):
    """Whether a step was logged after `since`, seconds of the epoch."""
    path = dump_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        return bool(lines) and datetime.fromisoformat(json.loads(lines[-1])["created_at"]).timestamp() >= since
    except json.JSONDecodeError:  # it is being written
        return False


def _superseded(dump_dir, key):
    path = dump_dir / "metrics.superseded.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the process was killed while writing it
            continue
        if key in entry:
            yield entry["global_step"], entry[key]
