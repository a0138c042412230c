"""`python -m apps.report`: what it prints and writes, and that it tells every mistake at once."""

import subprocess
import sys


def report(*args):
    return subprocess.run([sys.executable, "-m", "apps.report", *args], capture_output=True, text=True)


def test_two_runs(twins, tmp_path):
    out = tmp_path / "report"
    result = report(f"runs=[{twins[0]},{twins[1]}]", f"out={out}")
    assert result.returncode == 0, result.stderr
    assert "1.250" in result.stdout
    assert str(out / "curves.svg") in result.stdout
    assert (out / "comparison.md").read_text().startswith("# Comparison")


def test_mistakes_are_told_together_and_nothing_is_written(twins, make_run, tmp_path):
    out = tmp_path / "report"
    unvalidated = make_run("unvalidated", validate=False)
    result = report(f"runs=[{tmp_path}/gone,{unvalidated},{twins[0]}]", f"out={out}")
    assert result.returncode == 2
    assert "no directory" in result.stderr
    assert "validated nothing" in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()


def test_no_runs():
    result = report("out=")
    assert result.returncode == 2
    assert "runs: is empty" in result.stderr
    assert "out: is empty" in result.stderr
