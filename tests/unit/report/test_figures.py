"""Figures: the right numbers are drawn, they say where they come from, and they leave nothing behind."""

import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from tests.unit.report.conftest import PROVENANCE, TOPK
from topklm.errors import ConfigError
from topklm.report import compare, read_run, read_runs, write_report
from topklm.report.curves import annealed_until, health_curves, smooth, training_curves
from topklm.report.figure import framed, house_style

matplotlib = pytest.importorskip("matplotlib")


def test_smoothing_keeps_a_line_straight_and_a_gap_open():
    line = [float(i) for i in range(60)]
    assert smooth(line) == pytest.approx(line)
    assert smooth([0.0, 3.0, 0.0, 3.0]) == pytest.approx([0.0, 1.0, 2.0, 3.0])
    assert math.isnan(smooth([1.0, float("nan"), 1.0, 1.0])[1])
    assert smooth([]) == []


def test_curves_show_the_metrics_over_tokens(twins):
    figure, _ = training_curves(read_runs(twins))
    loss, perplexity, alpha = figure.axes
    assert list(loss.lines[0].get_xdata()) == [128 * step for step in range(5, 101, 5)]
    assert loss.lines[0].get_ydata()[-1] == pytest.approx(7.0)
    assert list(perplexity.lines[1].get_ydata()) == [200, 100]
    assert list(perplexity.lines[1].get_xdata()) == [6400, 12800]
    assert len(alpha.lines) == 1  # the dense run has none
    assert "context 32" in perplexity.get_ylabel()
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["dense", "sparse"]
    # The annealing phase: one shade a panel, to step 50.
    assert [patch.get_x() + patch.get_width() for patch in loss.patches] == [6400]


def test_contexts_are_told_apart_by_markers(make_run):
    runs = [read_run(make_run("one")), read_run(make_run("two", **{"val/ppl@64": 90.0, "val/tokens@64": 640}))]
    perplexity = training_curves(runs)[0].axes[1]
    assert [text.get_text() for text in perplexity.get_legend().get_texts()] == ["context 32", "context 64"]
    assert [line.get_marker() for line in perplexity.lines[:3]] == ["o", "o", "s"]


def test_annealing_ends_where_the_run_says_or_stops(make_run):
    runs = [read_run(make_run("dense")), read_run(make_run("short", topk=TOPK, until=20)),
            read_run(make_run("unsettled", topk={**TOPK, "anneal_steps": None}))]  # fmt: skip
    assert [annealed_until(run) for run in runs] == [0, 20, 50]


def test_health_is_of_the_topk_runs_only(twins):
    dense, sparse = read_runs(twins)
    assert health_curves([dense]) is None
    figure, text = health_curves([dense, sparse])
    l0, dead = figure.axes
    assert list(l0.lines[0].get_ydata()) == [2.5, 2.5]
    assert list(dead.lines[0].get_ydata()) == [12.5, 12.5]
    assert l0.lines[0].get_color() == training_curves([dense, sparse])[0].axes[2].lines[0].get_color()
    assert "k = 3" in [note.get_text() for note in l0.texts]
    assert str(twins[1]) in text
    assert str(twins[0]) not in text


def test_files_say_where_they_come_from_and_are_not_blank(twins, tmp_path):
    from matplotlib.image import imread

    runs = read_runs(twins)
    out = tmp_path / "report"
    paths = write_report(compare(runs), runs, out)
    names = ["comparison.md", "comparison.csv", "curves.png", "curves.svg", "health.png", "health.svg"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    figure, text = training_curves(runs)
    for part in (str(twins[0]), str(twins[1]), "step 100 (12,800 tokens)", "seed 42", "640 tokens @32"):
        assert part in text
    # As it is drawn: wrapped, so without line ends.
    assert "".join(text.split()) == "".join(figure.texts[-1].get_text().split())
    for stem, path in (("curves", twins[0]), ("health", twins[1])):
        assert imread(out / f"{stem}.png").std() > 0.02
        assert ElementTree.parse(out / f"{stem}.svg").getroot().tag.endswith("svg")
        assert str(path) in (out / f"{stem}.svg").read_text()


def test_figures_name_their_data(make_run):
    runs = [read_run(make_run("new", provenance=PROVENANCE)), read_run(make_run("old"))]
    new, old = training_curves(runs)[1].splitlines()
    assert "seed 42, data dddddddddddd," in new
    assert "data" not in old.split("seed 42")[1]


def test_nothing_in_a_figure_runs_over_its_edge(make_run):
    sparse = [make_run(f"a_run_of_a_long_name_{i}", topk={**TOPK, "k": i + 1}) for i in range(9)]
    runs = read_runs(sparse)
    for figure, _ in (training_curves(runs), health_curves(runs)):
        figure.canvas.draw()
        width, height = figure.canvas.get_width_height()
        legends = figure.legends[0].get_texts()
        assert len(legends) == 9
        for text in [*figure.texts, *legends, *(axes.yaxis.label for axes in figure.axes)]:
            box = text.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= width
            assert box.y0 >= 0
            assert box.y1 <= height
        legend = figure.legends[0].get_window_extent()
        assert not legend.overlaps(figure.axes[0]._left_title.get_window_extent())
        lowest = figure.axes[-1].xaxis.label.get_window_extent()
        assert figure.texts[-1].get_window_extent().y1 < lowest.y0


def test_equal_runs_give_equal_files_and_an_old_health_figure_goes(twins, tmp_path):
    runs = read_runs(twins)
    out = tmp_path / "report"
    (out / "other").mkdir(parents=True)
    first = {path.name: path.read_bytes() for path in write_report(compare(runs), runs, out)}
    again = {path.name: path.read_bytes() for path in write_report(compare(runs), runs, out)}
    assert first == again
    write_report(compare(runs[:1]), runs[:1], out)
    assert not (out / "health.png").exists()
    assert not (out / "health.svg").exists()
    assert (out / "other").is_dir()


def test_a_failing_report_leaves_the_earlier_one_whole(twins, tmp_path, monkeypatch):
    runs = read_runs(twins)
    out = tmp_path / "report"
    before = {path: path.read_bytes() for path in write_report(compare(runs), runs, out)}

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("topklm.report.write.save", full)
    with pytest.raises(ConfigError, match="no space left"):
        write_report(compare(runs[:1]), runs[:1], out)
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(out.iterdir())) == len(before)


def test_a_readers_style_is_neither_used_nor_changed(twins):
    runs = read_runs(twins)
    with matplotlib.rc_context({"text.color": "white", "axes.facecolor": "black"}):
        before = matplotlib.rcParams.copy()
        figure, _ = training_curves(runs)
        assert matplotlib.rcParams.copy() == before
    assert figure.axes[0].get_facecolor() == (1, 1, 1, 1)
    assert figure.texts[-1].get_color() != "white"


def test_matplotlib_is_asked_for_by_its_extra(twins, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"topklm\[plots\]"):
        training_curves(read_runs(twins))


def test_importing_the_report_loads_neither_torch_nor_matplotlib():
    code = "import sys, topklm.report; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_lines_of_hashes_stay_inside_a_figure():
    """Digits are wider than most letters."""
    with house_style():
        figure = framed("Title", [" ".join(f"{i}00 (0{i}dc00a5d03db)," for i in range(40))], 2.0)
        figure.canvas.draw()
    assert max(text.get_window_extent().x1 for text in figure.texts) <= figure.canvas.get_width_height()[0]
