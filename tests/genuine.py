"""Genuine Meta Lingua, where a checkout of it is on PYTHONPATH; tests that need it skip themselves elsewhere.

`lingua.transformer` is imported into the test. Programs that import Lingua's `apps`, whose name is that of ours, run in
a process of their own in another directory. It lacks a GPU there, so these stand in: `.cuda()` stays on the CPU, and
one operation of xformers' GPU build, which `lingua.distributed` only names, is declared.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROLOGUE = """
import json, logging, sys
from pathlib import Path
import torch
logging.getLogger("xformers").setLevel(logging.ERROR)
torch.library.define("xformers_flash::flash_fwd", "() -> ()")
torch.nn.Module.cuda = lambda self: self
"""


def checkout():
    """Lingua's checkout, or the test is skipped."""
    pytest.importorskip("lingua.transformer", reason="no Meta Lingua on PYTHONPATH", exc_type=ImportError)
    return Path(importlib.util.find_spec("lingua").origin).parents[1]


def run_genuine(code, *args, cwd):
    """Run Python `code` with Lingua's `apps` in `cwd` (not ours); sys.argv[1:] are `args`. Its output."""
    program = cwd / "program.py"
    program.write_text(PROLOGUE + code)
    # Behind Lingua's the repository, for topklm where it is not installed: Lingua's `apps` comes first.
    path = f"{checkout()}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", program, *map(str, args)], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
