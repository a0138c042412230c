"""The guard against NaN and infinity."""

import pytest
import torch

from topklm.errors import NonFiniteError
from topklm.train.nonfinite import NonFiniteGuard

FINE, NAN, INF = (torch.tensor(v) for v in (1.0, torch.nan, torch.inf))


def guard(mode, limit=2):
    return NonFiniteGuard(mode, limit, torch.device("cpu"), lambda step: f"documents of {step}")


def step(g, number, loss=FINE, norm=FINE, own=None):
    return g.verdict(number, loss if own is None else own, loss, norm).item()


@pytest.mark.parametrize(("loss", "norm"), [(NAN, FINE), (FINE, NAN), (INF, FINE), (FINE, -INF)])
def test_stop_refuses_the_bad_step_and_all_after_it_until_the_host_looks(loss, norm):
    g = guard("stop")
    assert [step(g, 0), step(g, 1, loss, norm), step(g, 2), step(g, 3)] == [0, 1, 1, 1]
    with pytest.raises(NonFiniteError, match=r"step 1 .*documents of 1"):
        g.check()


def test_a_rank_whose_own_loss_was_finite_does_not_blame_its_documents():
    g = guard("stop")
    step(g, 4, loss=NAN, own=FINE)
    with pytest.raises(NonFiniteError, match=r"step 4 .*another rank") as caught:
        g.check()
    assert "documents of 4" not in str(caught.value)


def test_skip_goes_on_up_to_a_number_of_bad_steps_in_a_row():
    g = guard("skip")
    assert [step(g, i, loss) for i, loss in enumerate([FINE, NAN, INF, FINE, NAN, NAN])] == [0, 1, 1, 0, 1, 1]
    assert g.check() == 4
    step(g, 6, NAN)
    with pytest.raises(NonFiniteError, match=r"3 steps in a row, from step 4 on.*documents of 4"):
        g.check()


def test_the_count_of_skipped_steps_goes_on_after_resuming():
    g = NonFiniteGuard("skip", 2, torch.device("cpu"), str, skipped=3)
    step(g, 0, NAN)
    assert g.check() == 4
