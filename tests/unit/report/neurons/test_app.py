"""`python -m apps.report bundles=[...]`: what it prints and writes, and that it tells every mistake at once."""

import subprocess
import sys


def report(*args):
    return subprocess.run([sys.executable, "-m", "apps.report", *args], capture_output=True, text=True)


def test_bundles(family, tmp_path):
    out = tmp_path / "report"
    result = report(f"bundles=[{','.join(map(str, family[:3]))}]", f"out={out}")
    assert result.returncode == 0, result.stderr
    assert "topk is more selective than its dense twin" in result.stdout
    assert str(out / "index.html") in result.stdout
    assert (out / "index.html").read_text().startswith("<!doctype html>")


def test_mistakes_in_runs_and_bundles_are_told_together(tmp_path):
    out = tmp_path / "report"
    result = report(f"bundles=[{tmp_path}/nothing]", f"runs=[{tmp_path}/gone]", f"out={out}")
    assert result.returncode == 2
    assert "nothing is not a bundle" in result.stderr
    assert "no directory" in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()
