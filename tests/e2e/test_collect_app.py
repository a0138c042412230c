"""`python -m apps.collect` as a user runs it."""

import time

import pytest

from tests.programs import run_app, start_app
from topklm.bundles import open_bundle

pytestmark = pytest.mark.e2e

SMALL = ["tokens=4k", "sample_contexts=2"]


def contents(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_a_run_gets_its_bundle_and_a_table(whole):
    done = run_app("apps.collect", f"ckpt={whole}", *SMALL)
    for text in ("125 windows of 32", "3 TopK and 1 dense readings of 32 neurons", "tables:", "disk: at most"):
        assert text in done.stderr, text
    for text in ("read as", "density", "near misses", "selections, one window at a time: 0.00%"):
        assert text in done.stdout, text
    bundle = open_bundle(whole / "bundles" / "0000000024")
    assert bundle.n_tokens == 125 * 32
    assert bundle.meta.model.sha256
    assert bundle.meta.model.alpha == 0.0
    assert bundle.layer(0).stats.fired.sum() <= 8 * bundle.n_tokens
    assert [len(parts) for parts in bundle.snapshots()] == [2, 4]


def test_a_killed_collection_goes_on_and_gives_the_identical_bundle(whole, tmp_path):
    arguments = ["apps.collect", f"ckpt={whole}", *SMALL, "batch_size=2", "save_minutes=0"]
    broken = tmp_path / "broken"
    for kills in range(2):
        process = start_app(*arguments, f"out={broken}")
        while not list(broken.with_name("broken.tmp").glob(f"work/0{kills}*.*/meta.json")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        time.sleep(0.02)  # in the middle of something
        process.kill()
        process.wait()
        process.stderr.close()
        assert not broken.exists()
    run_app(*arguments, f"out={broken}")
    run_app(*arguments, f"out={tmp_path / 'through'}")
    assert contents(broken) == contents(tmp_path / "through")


def test_all_checkpoints_of_a_run_at_alpha_0(whole):
    done = run_app("apps.collect", f"ckpt={whole}", "ckpts=all", "alpha=0", *SMALL)
    # Annealed over 12 steps: from step 15 on 0 is the checkpoint's own alpha.
    names = [f"{step:010d}" + "-alpha0" * (step < 12) for step in (5, 10, 15, 20, 24)]
    assert sorted(path.name for path in (whole / "bundles").iterdir()) == names
    assert done.stdout.count("read as") == 5
    early = open_bundle(whole / "bundles" / names[0])
    assert (early.meta.model.step, early.meta.model.alpha, early.layer(0).kind) == (5, 0.0, "topk")
    assert early.parts == []


def test_wrong_input_is_told_all_at_once(whole, tmp_path):
    wrong = ["tokens=many", "contxt=3", "site=inside", "read_topk={k: 0}"]
    done = run_app("apps.collect", f"ckpt={whole}", *wrong, check=2)
    for text in ("'many' is not a number of tokens", "did you mean context?", "'inside' is not one of post, pre",
                 "read_topk.k: 0 is below 1"):  # fmt: skip
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (whole / "bundles").exists()
    (tmp_path / "file").touch()
    done = run_app("apps.collect", f"ckpt={whole}", f"out={tmp_path / 'file' / 'b'}", *SMALL, check=2)
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
