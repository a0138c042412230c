"""A signal is remembered from the moment it comes, and asked for between the ranks."""

import os
import signal

import pytest
import torch.distributed as dist

from topklm.train.signals import STOP_SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def _restored():
    former = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    yield
    for signum, handler in former.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_the_first_signal_counts(signum):
    with StopRequest() as stop:
        assert (stop.agreed(None), stop.name) == (0, "")
        os.kill(os.getpid(), signum)
        for other in STOP_SIGNALS:
            os.kill(os.getpid(), other)
        assert (stop.agreed(None), stop.name) == (signum, signum.name)
    os.kill(os.getpid(), signal.SIGTERM)  # the process is leaving: one more must not end it before its exit code


def test_the_former_handlers_return_where_the_process_goes_on():
    former = signal.getsignal(signal.SIGUSR1)
    with StopRequest():
        assert signal.getsignal(signal.SIGUSR1) != former
    assert signal.getsignal(signal.SIGUSR1) == former
    with StopRequest(world_size=2) as stop:
        pass
    assert signal.getsignal(signal.SIGUSR1) == stop._note


def test_a_signal_that_comes_while_ranks_agree_is_for_the_next_time(monkeypatch):
    """Not lost, and not acted upon by one rank alone."""
    monkeypatch.setattr(dist, "all_reduce", lambda *args: os.kill(os.getpid(), signal.SIGUSR1))
    with StopRequest(world_size=2) as stop:
        assert stop.agreed(object()) == 0
        assert stop.agreed(object()) == signal.SIGUSR1


def test_the_signal_of_another_rank_is_taken_over(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda flag, *args: flag.fill_(signal.SIGUSR2))
    with StopRequest(world_size=2) as stop:
        assert stop.agreed(object()) == signal.SIGUSR2
    assert stop.name == "SIGUSR2"
