"""The guard against NaN and infinity."""

import pytest
import torch

from topklm.errors import NonFiniteError
from topklm.train.nonfinite import NonFiniteGuard

FINE, NAN, INF = (torch.tensor(v) for v in (1.0, torch.nan, torch.inf))


def guard(mode, limit=2):
    return NonFiniteGuard(mode, limit, torch.device("cpu"), lambda step: f"documents of {step}")


@pytest.mark.parametrize(("loss", "norm"), [(NAN, FINE), (FINE, NAN), (INF, FINE), (FINE, -INF)])
def test_stop_refuses_the_bad_step_and_all_after_it_until_the_host_looks(loss, norm):
    g = guard("stop")
    assert [g.verdict(0, FINE, FINE).item(), g.verdict(1, loss, norm).item(), g.verdict(2, FINE, FINE).item()] == [
        0,
        1,
        1,
    ]
    with pytest.raises(NonFiniteError, match=r"step 1 .*documents of 1"):
        g.check()


def test_skip_goes_on_up_to_a_number_of_bad_steps_in_a_row():
    g = guard("skip")
    verdicts = [g.verdict(i, loss, FINE).item() for i, loss in enumerate([FINE, NAN, INF, FINE, NAN, NAN])]
    assert verdicts == [0, 1, 1, 0, 1, 1]
    assert g.check() == 4
    g.verdict(6, NAN, FINE)
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        g.check()
