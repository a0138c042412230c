"""The guard against NaN and infinity: a verdict on the device, and what the host reads later."""

import pytest
import torch

from topklm.train.nonfinite import NonFiniteGuard

FINE, NAN, INF = (torch.tensor(v) for v in (1.0, torch.nan, torch.inf))


def guard(mode, limit=2, **state):
    return NonFiniteGuard(mode, limit, torch.device("cpu"), 16, **state)


def step(g, number, loss=FINE, norm=FINE, own=None):
    return g.verdict(number, loss if own is None else own, loss, norm).item()


@pytest.mark.parametrize(("loss", "norm"), [(NAN, FINE), (FINE, NAN), (INF, FINE), (FINE, -INF)])
def test_stop_refuses_the_bad_step_and_all_after_it_until_the_host_looks(loss, norm):
    g = guard("stop")
    assert [step(g, 0), step(g, 1, loss, norm), step(g, 2), step(g, 3)] == [0, 1, 1, 1]
    assert not g.failed
    records = g.read()
    assert g.failed
    assert g.row == [1, 2, 3]
    assert [(r.step, r.global_step, r.refused, r.is_finite) for r in records] == [
        (0, 1, False, True), (1, 2, True, False), (2, 3, True, True), (3, 4, True, True)
    ]  # fmt: skip


def test_the_host_reads_what_every_step_was_like():
    g = guard("stop")
    step(g, 4, loss=torch.tensor(2.5), norm=torch.tensor(0.1), own=torch.tensor(40.0))
    (record,) = g.read()
    assert (record.loss, record.own_loss, record.grad_norm) == (2.5, 40.0, torch.tensor(0.1).item())
    assert g.read() == []


def test_skip_goes_on_up_to_a_number_of_bad_steps_in_a_row():
    g = guard("skip")
    assert [step(g, i, loss) for i, loss in enumerate([FINE, NAN, INF, FINE, NAN, NAN])] == [0, 1, 1, 0, 1, 1]
    g.read()
    assert (g.skipped, g.row, g.failed) == (4, [4, 5], False)
    # Once there are too many, the weights stay those that the row began with: later steps are refused, fine or not.
    assert [step(g, 6, NAN), step(g, 7), step(g, 8)] == [1, 1, 1]
    g.read()
    assert g.failed
    assert g.row[0] == 4


def test_a_row_that_was_too_long_is_seen_even_if_fine_steps_followed():
    g = guard("skip", limit=1)
    assert [step(g, i, loss) for i, loss in enumerate([NAN, NAN, FINE, FINE])] == [1, 1, 1, 1]
    g.read()
    assert (g.failed, g.row[0]) == (True, 0)


def test_counts_and_rows_go_on_after_resuming():
    g = guard("skip", skipped=3, row=[8, 9])
    assert step(g, 10) == 0
    g.read()
    assert (g.skipped, g.row) == (3, [])
    g = guard("skip", skipped=3, row=[8, 9])
    assert [step(g, 10, NAN), step(g, 11)] == [1, 1]  # an interruption does not begin a new row
    g.read()
    assert (g.failed, g.row[0]) == (True, 8)


def test_a_configuration_that_allows_less_after_resuming_refuses_no_fine_step():
    for mode, limit in (("stop", 2), ("skip", 1)):
        g = guard(mode, limit, skipped=3, row=[7, 8, 9])
        assert step(g, 10) == 0
        g.read()
        assert (g.skipped, g.row, g.failed) == (3, [], False)


def test_steps_that_were_skipped_are_told_from_those_that_end_the_run():
    g = guard("skip", limit=1)
    for i, loss in enumerate([NAN, FINE, INF, NAN, FINE]):
        step(g, i, loss)
    assert [record.step for record in g.read() if g.was_skipped(record)] == [0, 2]
    assert g.failed
    g = guard("stop")
    step(g, 0, NAN)
    assert [record for record in g.read() if g.was_skipped(record)] == []
