"""Curves of steering as sentences, tables and figures: what they say is what was measured, also where it is nothing."""

import dataclasses
import math

import pytest

from topklm.report.result import Result, read_results, write_result
from topklm.report.steering import (
    Dose,
    DoseCurve,
    Estimate,
    best_control,
    caveats,
    concept_table,
    dose_figure,
    dose_table,
    summaries,
    text_table,
    verdict,
)

NAN = float("nan")


def around(value):
    return Estimate(value, 0.9 * value, 1.1 * value)


def a_dose(offset, rate, controls, p, perplexity=30.0):
    known = [control for control in controls if control == control]
    return Dose(
        offset=offset, multiple=offset / 4, n_tokens=4096, rate=around(rate), gain=around(rate - 0.01),
        lead=around(rate - sum(known) / len(known)), perplexity=around(perplexity), price=around(perplexity / 10),
        repeated=0.2, control_rates=controls, control_perplexities=[10.0 * 4**i for i in range(len(controls))],
        control_repeated=0.1, p=p,
    )  # fmt: skip


def a_curve(doses, n=19, p=0.05, **changes):
    given = {
        "neuron": "3:44", "counted": "reads", "kind": "topk", "density": 0.07, "unit": "P99.9 = 4",
        "concept": [" $will", " <b>"],
        "n_concept": 9, "corpus_rate": 0.02, "n_samples": 32, "rate": around(0.01), "perplexity": around(10.0),
        "repeated": 0.1, "n_tokens": 4000, "controls": [f"3:{i}" for i in range(n)],
        "control_densities": [0.05 + i / 1000 for i in range(n)], "same_dose": True, "doses": doses, "p": p,
    }  # fmt: skip
    return DoseCurve(**given | changes)


def beating(n=19):
    others = [0.01] * (n - 1) + [0.03]
    return a_curve([a_dose(2.0, 0.02, others, 0.4), a_dose(4.0, 0.3, others, 0.05), a_dose(8.0, 0.2, others, 0.05)], n)


def test_the_verdict_says_at_what_dose_and_at_what_price():
    told = verdict(beating())
    assert told.startswith("3:44 (reads “$will”, “<b>”) beats its controls at +4 (1x), +8 (2x) (p = 0.05 over 3 doses")
    assert (
        "at +4 (1x) 30.00% (27.00% ... 33.00%) of the generated tokens are among the 9 token types that it reads"
        in told
    )
    assert "against 1.11% for its controls and 1.00% unsteered" in told
    assert "3.00 (2.70 ... 3.30) times the unsteered perplexity" in told


def test_a_neuron_that_does_not_beat_its_controls_is_said_not_to_with_the_best_of_them():
    others = [0.0] * 18 + [0.9]
    told = verdict(a_curve([a_dose(4.0, 0.3, others, 0.1), a_dose(8.0, 0.04, others, 1.0)], p=0.1))
    assert "does not beat its controls (p = 0.1 over 2 doses, 19 controls): at +4 (1x)" in told
    assert "90.00% for the best of them, 3:18," in told


def test_few_controls_decide_nothing():
    told = verdict(a_curve([a_dose(4.0, 0.9, [0.0, 0.0], 1 / 3)], n=2, p=1 / 3))
    assert "2 controls cannot decide it: p is at least 0.33" in told
    assert summaries([a_curve([], n=2)] * 3) == []


def test_the_summary_counts_those_that_beat_their_controls():
    one_token = dataclasses.replace(a_dose(8.0, 0.0002, [0.0] * 19, 0.05), lead=Estimate(0.0002, 0.0, 0.0006))
    curves = [beating(), a_curve([], p=0.06), beating(), a_curve([one_token])]
    assert "does not beat its controls" in verdict(curves[3])
    (said,) = summaries([*curves, a_curve([], counted="writes")])
    assert said.startswith(
        "In the tokens that a neuron reads, 2 of 4 neurons beat their controls at p ≤ 0.05; at most about 0.2"
    )


def test_a_negative_offset_should_lower_the_rate():
    others = [0.05] * 19
    told = verdict(a_curve([a_dose(-8.0, 0.0, others, 0.05), a_dose(-4.0, 0.06, others, 0.05)]))
    assert "beats its controls at -8 (-2x) (p" in told
    assert "at -8 (-2x) 0.00%" in told


def test_what_has_no_tokens_is_left_out_of_means():
    dose = a_dose(4.0, 0.3, [0.1, NAN, 0.3], 0.5)
    dose = dataclasses.replace(dose, control_perplexities=[10.0, NAN, 40.0], lead=Estimate(NAN, NAN, NAN))
    curve = a_curve([dose], n=3)
    row = dose_table([curve]).rows[1]
    assert (row["control_rate"], row["control_rate_least"], row["control_rate_most"]) == (0.2, 0.1, 0.3)
    assert row["control_perplexity"] == pytest.approx(20.0)  # geometric
    assert best_control(curve, dose) == "3:2"
    assert math.isnan(row["lead"])
    assert "20.00% for its controls" in verdict(curve)


def test_tables_have_a_row_for_each_dose_and_the_unsteered_texts():
    table = dose_table([beating(), beating()])
    assert [row["dose"] for row in table.rows] == 2 * ["unsteered", "+2 (0.5x)", "+4 (1x)", "+8 (2x)"]
    assert {column.key for column in table.columns} >= {"rate", "lead_low", "p", "price", "repeated", "control_rate"}
    assert table.rows[2]["rate"] == 0.3
    assert concept_table([beating()]).rows[0]["tokens"] == [" $will", " <b>"]
    texts = text_table([{"neuron": "3:44", "dose": "+8", "sample": 0, "text": "one\r\ntwo|three"}], "Once\nupon")
    assert texts.rows[0]["text"] == "one ⏎ two|three"
    assert "Once ⏎ upon" in texts.note


def test_in_a_dense_layer_equal_density_is_said_to_mean_little():
    assert len(caveats([beating()])) == 2
    assert "means little" in caveats([a_curve([], kind="dense")])[-1]


@pytest.mark.parametrize("offsets", [(2.0, 4.0, 8.0, 16.0), (-4.0, 0.0, 4.0), (8.0,)])
def test_figures_are_drawn_for_any_doses(tmp_path, offsets):
    doses = [a_dose(x, 0.3, [0.01, 0.2, NAN], 0.05 if x == 8 else 0.5, 10.0 + abs(x) ** 3) for x in offsets]
    curve = a_curve(doses, n=3)
    drawing = dose_figure(curve, ["model: runs/$a, step 5"])
    rate, perplexity = drawing.figure.axes[:2]
    assert [label.get_text() for label in perplexity.get_xticklabels()] == [f"{x:+.3g}" for x in offsets]
    assert rate.get_xscale() == ("log" if len(offsets) == 4 else "linear")
    steered = [line for line in rate.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in steered] == [x != 8 for x in offsets]
    result = Result(
        kind="steering", title="Steering", statements=[verdict(curve)], provenance=["model: a"],
        tables={"doses": dose_table([curve])}, drawings={"dose": drawing}, data=dataclasses.asdict(curve),
    )  # fmt: skip
    write_result(result, tmp_path)
    (found,) = read_results([tmp_path])
    assert found.data["doses"][0]["control_rates"] == [0.01, 0.2, None]
