"""The tables and the picture: what they say, and that they are well-formed."""

import csv
import io
import re

import pytest

from topklm.report.evals import compare_evaluations, rich_tables, write_comparison
from topklm.report.evals.picture import evaluation_figure
from topklm.report.evals.tables import csv_text, differences_csv, latex, markdown

from .synthetic import FakeValidation, provenance, write
from .test_compare import GUESSED, HIGHER, LOSSES, RIGHT, SIZES, WORSE, twins


@pytest.fixture
def comparison(tmp_path):
    topk = {"scores": GUESSED, "near": ["acc,none"], "validation": FakeValidation(HIGHER, SIZES)}
    return compare_evaluations(
        twins(tmp_path, {"scores": RIGHT, "validation": FakeValidation(LOSSES, SIZES)}, topk)
    )  # fmt: skip


def test_markdown(comparison):
    page = markdown(comparison)
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    acc, error = sum(RIGHT) / 400, comparison.rows[0].cells[comparison.columns[2]].stderr
    assert f"{acc:.4f} ± {error:.4f} |" in page
    assert re.search(r"\| topk \| topk \| 8 \| 64 \| 4 \| 10 \|.* ~ \|", page)
    assert re.search(r"\| chance \|.*\| 0\.5000 \|", page)
    assert re.search(r"\| topk \| dense \| val ppl @256 \| 80 \| x 1\.\d{4} \| 1\.\d{4} to 1\.\d{4} \|.*worse \|", page)
    assert "- ~ marks a score" in page


def test_csv_has_every_figure_unrounded(comparison):
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    assert len(rows) == 6
    acc = next(row for row in rows if row["metric"] == "acc" and row["model"] == "topk")
    assert float(acc["value"]) == sum(GUESSED) / 400
    assert (acc["chance"], acc["near_chance"], acc["documents"]) == ("0.5", "True", "400")
    assert acc["tokenizer_sha256"] == "t" * 64
    differences = list(csv.DictReader(io.StringIO(differences_csv(comparison))))
    assert [row["metric"] for row in differences] == ["ppl", "bpb", "acc"]
    assert float(differences[0]["ratio"]) > 1
    assert differences[2]["ratio"] == ""


def test_latex_is_balanced_and_escaped(tmp_path):
    paths = twins(
        tmp_path,
        {"scores": RIGHT, "task": "pick_one", "provenance": {"name": "a_b & 50%"}},
        {"scores": WORSE, "task": "pick_one", "provenance": {"name": "c~d"}, "near": ["acc,none"]},
    )
    text = latex(compare_evaluations(paths))
    assert r"a\_b \& 50\%" in text
    assert r"c\textasciitilde{}d" in text
    assert "difference" in text
    tables = re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert [len(re.findall(r"\\\\\n", body)) for _, body in tables] == [4, 2]  # two models and chance; one difference
    for columns, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
        assert body.count(r"$\sim$") == (columns == "lrrrr")
    assert r"\footnotesize Differences are TopK less dense" in text
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0


def test_the_terminal_shows_all_of_it_in_80_characters(comparison):
    from rich.console import Console

    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(rich_tables(comparison))
    text = console.export_text()
    for part in ("val ppl @256", "pick acc @256", "chance", "topk less dense", "worse", "~ marks a score"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def test_values_that_are_missing_huge_or_not_finite(tmp_path):
    from topklm.evaluate import write_results

    results = {"results": {"t": {"perplexity,none": 3.2e9, "perplexity_stderr,none": 1e8, "acc,none": float("inf")}}}
    write_results(tmp_path / "a/evals/0000000010", provenance=provenance("a"), harness=results)
    write(tmp_path, "b", provenance("b"), scores=RIGHT)
    page = markdown(compare_evaluations([tmp_path / "a", tmp_path / "b"]))
    assert "| 3.20e+09 ± 1.00e+08 |" in page
    assert "| not finite |" in page
    assert "| - |" in page


def test_files_are_written_and_replaced(comparison, tmp_path):
    out = tmp_path / "out"
    names = {"evaluation.md", "evaluation.csv", "evaluation.tex", "evaluation.png", "evaluation.svg", "differences.csv"}
    assert {path.name for path in write_comparison(comparison, out)} == names
    assert {path.name for path in out.iterdir()} == names
    assert (out / "evaluation.png").read_bytes()[:4] == b"\x89PNG"
    assert "context 256" in (out / "evaluation.svg").read_text()
    without = write(tmp_path, "alone", provenance(), validation=FakeValidation(LOSSES, SIZES))
    write_comparison(compare_evaluations([without]), out)
    assert {path.name for path in out.iterdir()} == names - {"evaluation.png", "evaluation.svg"}


def test_the_picture_has_a_panel_for_each_kind_of_figure(comparison, tmp_path):
    figure, text = evaluation_figure(comparison)
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert [label.split()[0] for label in labels] == ["accuracy", "difference", "perplexity"]
    assert len(figure.axes[2].get_yticks()) == 1
    assert "topk: " in text
    assert "alpha 0" in text
    alone = compare_evaluations([write(tmp_path, "alone", provenance(), scores=RIGHT)])
    assert [axes.get_xlabel().split()[0] for axes in evaluation_figure(alone)[0].axes] == ["accuracy"]
