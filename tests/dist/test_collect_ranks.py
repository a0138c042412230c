"""`torchrun ... -m apps.collect` on gloo ranks: the bundle that one process makes, also of a killed job."""

import time

import numpy as np
import pytest

from tests.programs import kill, run_app, start_app, torchrun
from tests.unit.bundles.reference import assert_equal
from topklm.bundles import open_bundle
from topklm.interp import CollectConfig, collect

pytestmark = pytest.mark.dist


# In float64, so that batches of another shape do not select otherwise.
SETTINGS = {"dtype": "fp64", "batch_size": 4, "tokens": 6000, "positive_part": True}


@pytest.fixture(scope="module")
def arguments(_whole):
    return [f"ckpt={_whole}", "dtype=fp64", "batch_size=4", "tokens=6000", "snapshots=[2000]", "positive_part=true"]


@pytest.fixture(scope="module")
def one(_whole, tmp_path_factory):
    """The bundle that one process makes."""
    out = tmp_path_factory.mktemp("one") / "bundle"
    (path,) = collect(CollectConfig(ckpt=str(_whole), out=str(out), snapshots=[2000], **SETTINGS))
    return open_bundle(path)


def assert_same(bundle, expected):
    assert np.array_equal(bundle.counts, expected.counts)
    assert np.array_equal(bundle.windows, expected.windows)
    assert [part.name for part in bundle.meta.parts] == [part.name for part in expected.meta.parts]
    for layer in expected.layers:
        assert_equal(bundle.layer(layer).whole(), expected.layer(layer).whole(), rtol=1e-9)
    for part, wanted in zip(bundle.parts, expected.parts, strict=True):
        assert_equal(part.layer(1).whole(), wanted.layer(1).whole(), rtol=1e-9)


def test_ranks_make_the_same_bundle(arguments, one, tmp_path):
    out = tmp_path / "bundle"
    done = run_app(*torchrun(3), "apps.collect", *arguments, f"out={out}")
    assert "3 ranks" in done.stderr
    assert done.stdout.count("read as") == 1  # one of them prints
    bundle = open_bundle(out)
    assert bundle.meta.made[0].world_size == 3
    assert_same(bundle, one)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_killed_job_goes_on_with_as_many_ranks_or_others(arguments, one, tmp_path):
    for ranks, memory in ((2, []), (1, ["memory_gb=0.0025"])):
        out = tmp_path / f"by{ranks}"
        settings = [*arguments, f"out={out}", "save_minutes=0", *memory]
        process = start_app(*torchrun(2), "apps.collect", *settings)
        wait_for(lambda out=out: list(out.with_name(f"{out.name}.tmp").glob("work/01a*.*[0-9]/meta.json")), process)
        kill(process)
        assert not out.exists()
        run_app(*(torchrun(2) if ranks == 2 else []), "apps.collect", *settings)
        assert_same(open_bundle(out), one)


def wait_for(what, process, timeout=120):
    deadline = time.monotonic() + timeout
    while not what():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_wrong_input_is_told_once(arguments, tmp_path):
    done = run_app(*torchrun(2), "apps.collect", *arguments, f"out={tmp_path / 'x'}", "context=100000", check=1)
    assert "whole window of 100000" in done.stderr
    assert not (tmp_path / "x.tmp").exists()
