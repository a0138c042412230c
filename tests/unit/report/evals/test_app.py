"""`python -m apps.eval compare` as a user starts it."""

from tests.programs import run_app

from .test_compare import RIGHT, WORSE, twins


def test_two_runs(tmp_path):
    dense, topk = twins(tmp_path, {"scores": RIGHT}, {"scores": WORSE})
    done = run_app("apps.eval", "compare", dense, topk, f"out={tmp_path / 'out'}", env={"COLUMNS": "200"})
    assert "topk less dense" in done.stdout
    assert "worse" in done.stdout
    assert "both guess" not in done.stdout
    assert (tmp_path / "out" / "evaluation.tex").exists()
    failed = run_app("apps.eval", "compare", dense, tmp_path / "nothing", f"out={tmp_path / 'x'}", check=2)
    assert "holds no evaluation" in failed.stderr
    assert not (tmp_path / "x").exists()
