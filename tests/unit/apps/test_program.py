"""What all programs do around their main function."""

import os
import socket
import subprocess
import sys

from tests.programs import ROOT


def test_help_into_a_pipe_that_is_closed_early_is_no_error():
    """`--help | head`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "apps.report", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141  # as of a program that SIGPIPE ended


def test_an_error_is_told_in_one_piece():
    """Several ranks write to one pipe: what is written in two pieces, their lines run together."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        subprocess.run([sys.executable, "-m", "apps.train", "steps=0"], cwd=ROOT, stderr=theirs, check=False)
        assert ours.recv(10_000).endswith(b"\n")
