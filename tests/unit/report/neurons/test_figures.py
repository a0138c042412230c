"""What the figures draw: the planted numbers, at the right layers and steps."""

import numpy as np
import pytest

from topklm.report.neurons import read_measured
from topklm.report.neurons.clouds import convergence_figure, density_figure
from topklm.report.neurons.depth import depth_figure, silent_figure
from topklm.report.neurons.training import training_figure


def drawn(axis, n):
    """y values of the lines with n points and a line style."""
    return [
        tuple(line.get_ydata()) for line in axis.lines if len(line.get_xdata()) == n and line.get_linestyle() != "None"
    ]


def shades(axis):
    """(from, to) of the vertical spans."""
    boxes = [patch.get_extents().transformed(axis.transData.inverted()) for patch in axis.patches]
    return [(pytest.approx(box.x0), pytest.approx(box.x1)) for box in boxes]


def test_depth_has_each_reading_at_each_layer(family):
    figure, provenance = depth_figure(read_measured(family))
    found = sorted(values[0] for values in drawn(figure.axes[0], 4))
    # Of the five neurons with a value, two are below and three above the level by 0.1.
    assert found == pytest.approx([1.02, 1.52, 2.52, 3.02, 3.52])
    assert len(figure.axes[0].collections) == 2  # bands of the models, not of the controls
    assert (2.5, 3.5) in shades(figure.axes[0])
    assert "nats" in figure.axes[0].get_ylabel()
    assert "1,000 tokens" in figure.axes[0].get_title(loc="left")
    assert "at least 2 times" in figure.axes[0].get_title(loc="left")
    assert provenance.count("bundle ") == provenance.count("tokenizer tttttttttttt") == 5


def test_dense_readings_have_hollow_markers(plant):
    figure, _ = depth_figure(read_measured([plant("a")]))
    faces = {line.get_markerfacecolor(): list(line.get_xdata()) for line in figure.axes[0].lines
             if line.get_linestyle() == "None"}  # fmt: skip
    assert faces.pop("white") == [3]
    assert list(faces.values()) == [[0, 1, 2]]


def test_silent_shares(plant):
    figure, _ = silent_figure(read_measured([plant("a")]))
    assert drawn(figure.axes[0], 4) == [pytest.approx((100 / 6,) * 4)]


def test_training_at_own_alpha_and_at_alpha_zero(plant):
    paths = [plant("25", step=25, alpha=0.5, level=4.0), plant("25-0", step=25, level=1.0), plant("100", level=2.0)]
    figure, provenance = training_figure(read_measured(paths))
    left, right = figure.axes[:2]
    assert "layer 2" in left.get_title(loc="left")
    assert "layer 3" in right.get_title(loc="left")
    assert drawn(left, 2) == [pytest.approx((4.02, 2.02)), pytest.approx((1.02, 2.02))]
    assert list(left.lines[0].get_xdata()) == [25, 100]
    assert shades(left) == [(0, 50)]
    assert [line.split(":")[0] for line in provenance.split("\n")] == ["topk, own alpha", "topk, alpha 0"]
    assert "25 (alpha 0.5, " in provenance


def test_one_checkpoint_is_no_training(family):
    assert training_figure(read_measured(family)) is None


def test_density_leaves_silent_neurons_out(plant):
    figure, _ = density_figure(read_measured([plant("a")]))
    clouds = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert [len(line.get_xdata()) for line in clouds] == [15, 5]
    assert all(np.all(line.get_xdata() == 0.5) for line in clouds)


def test_convergence_by_tokens_and_its_limit(plant):
    figure, _ = convergence_figure(read_measured([plant("a", level=3.0)]))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert list(lines[0].get_xdata()) == [250, 500, 1000]
    assert list(lines[0].get_ydata()) == pytest.approx([2.6, 2.8, 2.9])
    limits = [
        line.get_ydata()[0] for line in figure.axes[0].lines if line.get_marker() == "D" and len(line.get_xdata())
    ]
    assert limits == [3.5] * 4


def test_a_name_with_dollars_is_no_formula(plant, tmp_path):
    measured = read_measured([plant("a", run="topk$x^$")])
    for draw in (depth_figure, density_figure):
        draw(measured)[0].savefig(tmp_path / "figure.png")
