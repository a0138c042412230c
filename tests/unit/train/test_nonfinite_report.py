"""The message of a run that ends for a number: it is told whatever happens to its file."""

import torch

from topklm.train.diagnose import Finding
from topklm.train.nonfinite_report import nonfinite_error
from topklm.train.parallel import World

FINDING = Finding("loss", "", "loss", 1, 1, 0)


def test_a_disk_that_is_full_does_not_hide_it(tmp_path, caplog):
    world = World(0, 0, 1, torch.device("cpu"))
    error = nonfinite_error(world, tmp_path / "gone", "step 3 is not finite", FINDING, lambda i: ["a:0"], {})
    assert "step 3 is not finite.\nFirst, in the order of a step: loss, rank 0, micro-batch 0" in str(error)
    assert "nonfinite.json cannot be written: No such file or directory" in caplog.text
