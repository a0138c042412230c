"""Every sweep that is shipped loads, and all configurations of its runs are valid."""

from pathlib import Path

import pytest

from topklm.config import load_config
from topklm.launch import SweepConfig, plan_runs
from topklm.report.sweeps.groups import shown

ROOT = Path(__file__).parents[3]
SWEEPS = sorted(path for path in (ROOT / "configs" / "sweeps").rglob("*.yaml") if path.name != "base.yaml")
FINDINGS = sorted((ROOT / "configs" / "findings").glob("*.yaml"))
AT_SIZE = ("tail", "k", "width", "width_lingua_ffn", "anneal", "depth")


def load(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(SweepConfig, [f"config={path}"])
    return config, plan_runs(config)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: str(path.relative_to(ROOT / "configs" / "sweeps")))
def test_shipped_sweeps_load(path, monkeypatch):
    config, runs = load(path, monkeypatch)
    assert config.name == path.stem
    assert Path(config.dump_dir) == Path(
        "runs/sweeps", *path.parent.parts[path.parent.parts.index("sweeps") + 1 :], path.stem
    )
    sparse = [run for run in runs if not run.is_dense]
    assert sparse
    assert all(run.twin in {run.name for run in runs if run.is_dense} for run in sparse)
    # Dense twins of what differs in the TopK alone are trained once.
    assert len(runs) - len(sparse) == len({run.twin for run in sparse})


def test_every_sweep_has_a_small_one():
    assert {path.stem for path in SWEEPS if path.parent.name == "sweeps"} == set(AT_SIZE)
    assert {path.stem for path in SWEEPS if path.parent.name == "small"} == set(AT_SIZE)


def test_the_sweeps_at_the_papers_size(monkeypatch):
    def sparse(name):
        _, runs = load(ROOT / "configs" / "sweeps" / f"{name}.yaml", monkeypatch)
        return [run for run in runs if not run.is_dense]

    assert [run.config.topk.k for run in sparse("k")] == [8, 16, 32, 64, 128, 256, 512]
    assert [run.config.topk.n_dense_tail for run in sparse("tail")] == [0, 1, 2]
    assert {run.config.model.ffn_width for run in sparse("width")} == {2816}
    assert [run.config.model.ffn_width for run in sparse("width_lingua_ffn")] == [2816, 5632, 8192, 11008, 22016]
    millions = [round(run.config.model.n_params / 1e6, 1) for run in sparse("depth")]
    assert millions == [168.3, 271.1, 373.9, 403.7, 676.4, 949.1]
    assert all(run.config.model.head_width <= 256 for run in sparse("width"))
    assert {shown(run.swept["topk.anneal_form"]) for run in sparse("anneal")} == {"blend", "identity", "relu"}


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_the_sweeps_of_the_findings_have_several_seeds_and_twins(path, monkeypatch):
    config, runs = load(path, monkeypatch)
    assert config.name == path.stem
    assert len({run.seed for run in runs}) >= 3
    assert all(run.is_dense or run.twin for run in runs)
