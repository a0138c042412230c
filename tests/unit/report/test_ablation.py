"""What is said of ablations: counts, medians and correlations of known numbers."""

import math
import re

import pytest

from topklm.report.ablation import WHERE, Ablated, Compared, caveats, effects_tables, findings, logits_table
from topklm.report.steering import Estimate


def ablated(neuron, value, half, others, kind="topk"):
    effects = {where: Estimate(value, value - half, value + half) for where in WHERE}
    return Ablated(
        neuron=neuron, kind=kind, density=0.1, contexts=3, effects={"zero": effects},
        controls={"zero": dict.fromkeys(WHERE, others)}, control_neurons=[f"9:{i}" for i in range(len(others))],
        attribution=value / 2, attribution_mean=0.0, fired=10, survival=0.5, scale=1.0, promoted=[("a", 0.25)],
        suppressed=[("b", -0.25)],
    )  # fmt: skip


ROWS = [
    ablated("1:2", 0.04, 0.01, [0.01, 0.02, 0.05, math.nan]),
    ablated("1:3", -0.02, 0.01, [0.01, -0.03], "dense"),
    ablated("1:4", 0.01, 0.02, []),
]


def test_findings_count_what_excludes_zero_and_who_is_above_the_controls():
    pairs = [(1.0, 3.0), (2.0, 5.0), (3.0, 4.0), (4.0, 8.0)]
    compared = [
        Compared(neuron=f"0:{i}", layer=0, variant="zero", is_target=True, estimate=a, effect=b)
        for i, (a, b) in enumerate(pairs)
    ]
    effect, order, reaches = findings(ROWS, compared, 3.0)
    assert "a median of +0.01000" in effect
    assert "at most +0.04000" in effect
    assert "excludes 0 for 2, of which 1 raise the loss" in effect
    assert "above 58% of their controls' (all windows; p = " in effect  # (2/3 + 1/2) / 2
    p = sum(a / 3 + b / 2 >= 2 / 3 + 1 / 2 - 1e-9 for a in range(4) for b in range(3)) / 12
    assert float(re.search(r"p = ([\d.]+)", effect)[1]) == pytest.approx(p, abs=0.02)
    assert f"58% of their controls' ({WHERE['at']}" in effect
    assert "rank correlation of 0.80" in order
    assert "signs agree for 4," in order
    assert f"{sum(a * b for a, b in pairs) / sum(a * a for a, _ in pairs):.2f} times the estimate" in order
    assert "50.0%" in reaches
    assert findings(ROWS, compared[:2], 3.0) == [effect, reaches]


def test_a_lead_that_was_never_drawn_is_not_impossible():
    said = findings([ablated(f"1:{i}", 0.04, 0.01, [0.0] * 9) for i in range(12)], [], 3.0)
    p = float(re.search(r"p = ([\d.e-]+)\)", said[0])[1])
    assert 0 < p < 1e-4


def test_tables_hold_every_number():
    tables = effects_tables(ROWS, 0.9)
    assert list(tables) == list(WHERE)
    first, _, last = tables["overall"].rows
    assert (first["effect"], first["low"], first["above"]) == (0.04, pytest.approx(0.03), "2 of 3")
    assert first["controls"] == 0.02
    assert first["estimate"] == 0.02
    assert last["controls"] is None
    assert last["above"] is None
    assert "90% intervals" in tables["at"].note
    assert logits_table(ROWS).rows[0]["promoted"] == ["a +0.25"]


def test_dense_layers_get_their_warning():
    assert len(caveats(ROWS)) == len(caveats(ROWS[:1])) + 1
