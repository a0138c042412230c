"""`python -m apps.entropy` as a user runs it."""

import csv

import pytest

from tests.programs import run_app

pytestmark = pytest.mark.e2e


def test_bundles_get_their_entropies_and_others_are_not_compared(whole, tmp_path):
    many, few = tmp_path / "many", tmp_path / "few"
    run_app("apps.collect", f"ckpt={whole}", "tokens=4k", f"out={many}")
    run_app("apps.collect", f"ckpt={whole}", "tokens=1k", f"out={few}")
    settings = (f"bundle={many}", f"bundle={few}", "min_count=5", "draws=50", "null_sets=4")
    refused = run_app("apps.entropy", *settings, check=2)
    assert "numbers of tokens" in refused.stderr
    assert "force=true" in refused.stderr
    done = run_app("apps.entropy", *settings, "force=true")
    for text in ("sem.", "mean token entropy by corpus size", "types with at least 5"):
        assert text in done.stdout, text
    for path in (many, few):
        with (path / "entropy" / "recommended" / "layers.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["layer"] for row in rows] == ["0", "1", "2", "3"]
        assert all(0 < float(row["token_entropy_mean"]) < 7 for row in rows)
