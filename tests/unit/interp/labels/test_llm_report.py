"""What the result says of labels, by how many neurons there are and what they scored."""

import numpy as np
import pytest

from tests.unit.interp.planted import plant
from topklm.interp.labels.detection import Detection
from topklm.interp.labels.llm_config import LlmConfig
from topklm.interp.labels.llm_report import llm_lines, llm_result
from topklm.interp.labels.llm_run import Case, Scored

CONFIG = LlmConfig(bundle="b", neurons="0:0", base_url="http://localhost/v1", model="m")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("labels") / "b", [np.ones((8, 10))], np.full(8, 20))


def scored(own, control):
    """A neuron per pair of hits, of 20 firing excerpts; half of 20 quiet ones are rejected throughout."""
    return [
        Scored(
            case=Case(layer=0, neuron=i, shown=["<<a>>"], texts=["a"] * 40, fires=[True] * 20 + [False] * 20),
            label=f"label {i}",
            own=Detection(hits=a, positives=20, rejections=10, negatives=20, unanswered=0),
            control=None if b is None else Detection(hits=b, positives=20, rejections=10, negatives=20, unanswered=0),
        )
        for i, (a, b) in enumerate(zip(own, control, strict=True))
    ]


@pytest.mark.parametrize(
    ("own", "control", "verdict"),
    [
        ([18, 19, 20, 18, 19, 20], [10, 9, 11, 10, 8, 12], "labels tell something about their own neurons"),
        ([10, 11, 9, 12, 8, 10], [10, 9, 11, 10, 8, 12], "it is not shown that labels are better"),
        ([20, 20, 20, 20, 20], [2, 3, 2, 3, 2], "fewer than 6 are too few to tell"),
        ([20], [10], "fewer than 6 are too few to tell"),
        ([20], [None], "There is no control"),
    ],
)
def test_a_verdict_needs_neurons_and_a_difference(bundle, own, control, verdict):
    told = " ".join(llm_result(CONFIG, bundle, scored(own, control), (0, 0)).statements)
    assert verdict in told
    assert "nan" not in told


def test_a_label_is_significant_if_its_interval_is_above_chance(bundle):
    lines = llm_lines(CONFIG, bundle, scored([20, 10], [10, 10]))
    assert [line.significant for line in lines] == [True, False]
    assert [line.score for line in lines] == [0.75, 0.5]
    assert lines[0].settings["control"] == 0.5
