"""The sentence: what is more selective, by how much, and what is missing to tell."""

import math

import numpy as np
import pytest

from topklm.report.neurons import read_measured, verdicts
from topklm.report.neurons.verdict import gap

CUT = {"k": 3, "relu": True, "n_dense_tail": 0}


def test_gap_against_the_formula(family):
    topk, _, read, *_ = read_measured(family)
    found = gap(topk, read, [0, 1, 2])
    variance = sum(
        np.nanvar(each.of(layer, "token_entropy"), ddof=1) / 5 for each in (topk, read) for layer in (0, 1, 2)
    )
    assert found.difference == pytest.approx(-0.5)
    assert found.error == pytest.approx(math.sqrt(variance) / 3)
    assert found.neurons == 30


def test_more_selective_with_all_controls(family):
    (text,) = verdicts(read_measured(family))
    assert "topk is more selective than its dense twin: in its" in text
    assert "layers 0 to 2" in text  # not the dense tail
    assert "-0.50 ± " in text
    assert "Extrapolated over corpus size the difference is -0.50 nats" in text
    assert "Without the correction it is -2.00" in text
    assert "training has changed it by -1.50" in text
    assert "not independent" in text


@pytest.mark.parametrize(("level", "says"), [(2.0, "is less selective, not more,"), (1.501, "is not more selective")])
def test_it_says_so_where_it_is_not(plant, level, says):
    paths = [plant("topk-bundle", level=level), plant("dense-read", run="dense", cut=CUT, level=1.5)]
    (text,) = verdicts(read_measured(paths))
    assert says in text


@pytest.mark.parametrize(
    "other", [{}, {"cut": {**CUT, "k": 4}}, {"cut": CUT, "step": 50}, {"cut": {**CUT, "relu": False}}]
)
def test_without_the_right_control_nothing_is_claimed(plant, other):
    (text,) = verdicts(read_measured([plant("topk-bundle"), plant("dense-bundle", run="dense", **other)]))
    assert "cannot be told" in text
    assert "read_topk={k: 3}" in text
    assert "is more selective" not in text.replace("Whether topk is more selective", "")


def test_a_signed_cut_is_read_signed(plant):
    paths = [plant("topk-bundle", section={"anneal_form": "identity"}), plant("dense-read", run="dense", cut=CUT)]
    (text,) = verdicts(read_measured(paths))
    assert "cannot be told" in text
    assert "read_topk={k: 3, relu: false}" in text
    paths.append(plant("dense-signed", run="dense", cut={**CUT, "relu": False}))
    (text,) = verdicts(read_measured(paths))
    assert text.startswith("Read alike")


@pytest.mark.parametrize("section", [{"activation": "jumprelu"}, {"k_per_layer": [3, 3, 4]}])
def test_what_no_dense_model_can_be_read_through_has_no_verdict(plant, section):
    (text,) = verdicts(read_measured([plant("topk-bundle", section=section), plant("d", run="dense", cut=CUT)]))
    assert "cannot be told" in text
    assert next(iter(section)) in text or "jumprelu" in text


def test_while_annealing_nothing_is_said(plant):
    (text,) = verdicts(read_measured([plant("a", step=25, alpha=0.5)]))
    assert "still annealing (alpha 0.5)" in text


def test_dense_models_alone_have_no_verdict(plant):
    assert verdicts(read_measured([plant("a", run="dense")])) == []


def test_no_limit_no_extrapolation(plant):
    paths = [plant("topk-bundle", limits=False), plant("dense-read", run="dense", cut=CUT)]
    (text,) = verdicts(read_measured(paths))
    assert "cannot be extrapolated" in text


def test_a_difference_that_extrapolation_turns_round_is_not_claimed(plant):
    paths = [plant("topk-bundle", level=1.0), plant("dense-read", run="dense", cut=CUT, level=1.5)]
    measured = read_measured(paths)
    for row in measured[0].entropy["convergence"]:
        row["limit"] = None if row["layer"] == 0 or row["limit"] is None else 2.25
    (text,) = verdicts(measured)
    assert "(layers 1, 2: the others do not converge yet) the difference is +0.25 nats" in text
    assert "looks more selective than its dense twin on so few tokens, but is not by the corrected measure" in text
