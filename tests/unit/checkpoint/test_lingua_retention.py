"""Which checkpoints stay, against genuine Meta Lingua; skipped where no checkout is on PYTHONPATH."""

import itertools
import json

from tests.genuine import run_genuine
from topklm.checkpoint.config import CheckpointConfig, SaveEvery

CODE = """
import tempfile
import torch.distributed as dist
from lingua.checkpoint import CheckpointArgs, CheckpointManager, SaveEvery
dist.get_rank, dist.barrier = lambda: 0, lambda: None
logging.disable()
for (dump, evaluation), last in json.loads(sys.argv[1]):
    with tempfile.TemporaryDirectory() as path:
        args = CheckpointArgs(dump=SaveEvery(*dump), eval=SaveEvery(*evaluation), path=path)
        manager = CheckpointManager(args)
        for step in range(1, last + 1):
            if step % dump[0] == 0 or step % evaluation[0] == 0 or step in (7, last):
                (Path(path) / f"{step:010d}").mkdir()
                manager.existing_saves = manager.get_existing_saves()
                manager.clean_up()
        print(json.dumps(sorted(int(p.name) for p in Path(path).iterdir())))
"""


def test_the_same_checkpoints_stay(tmp_path):
    """Of both schedules, of a stop at step 7, and of the end."""
    cases = list(itertools.product(itertools.product([(5, 1), (10, 3), (4, 0)], [(10, 2), (15, -1), (6, 1)]), [31, 40]))
    lines = run_genuine(CODE, json.dumps(cases), cwd=tmp_path).splitlines()
    theirs = [json.loads(line) for line in lines if line.startswith("[")]
    assert len(theirs) == len(cases)
    for ((dump, evaluation), last), expected in zip(cases, theirs, strict=True):
        config = CheckpointConfig(
            dump=SaveEvery(every=dump[0], keep=dump[1]), eval=SaveEvery(every=evaluation[0], keep=evaluation[1])
        )
        saved: list[int] = []
        for step in range(1, last + 1):
            if config.saves_at(step) or step in (7, last):
                saved.append(step)
                retired = config.retired(saved)
                saved = [step for step in saved if step not in retired]
        assert saved == expected, (dump, evaluation, last)
