"""A sweep over k with two seeds whose figures are known, made of directories that were never trained."""

import dataclasses

import pytest

from tests.unit.report.conftest import PROVENANCE, TOPK
from topklm.report.sweeps import SweepRun

# Validation perplexities after the last step, by name.
PERPLEXITIES = {
    "dense-s1": 100.0, "dense-s2": 110.0,
    "k2-s1": 120.0, "k2-s2": 121.0,
    "k8-s1": 105.0, "k8-s2": 112.2,
}  # fmt: skip


@pytest.fixture
def runs(make_run):
    """Eight runs: the dense twins and k 2 and 8 are finished, of k 32 one failed and one has not begun."""
    made = []
    for name, ppl in PERPLEXITIES.items():
        kind, seed = name.split("-s")
        k = None if kind == "dense" else int(kind[1:])
        path = make_run(name, topk=k and {**TOPK, "k": k}, ppl=ppl, provenance=PROVENANCE)
        made.append(planned(name, path, k, int(seed), state="finished", step=100))
    failed = make_run("k32-s1", topk={**TOPK, "k": 32}, ppl=3.0, until=50, provenance=PROVENANCE)
    made.append(planned("k32-s1", failed, 32, 1, state="failed", step=50, reason="exit code 4"))
    made.append(planned("k32-s2", failed.parent / "k32-s2", 32, 2, state="new"))
    return made


def planned(name, path, k, seed, **state):
    return SweepRun(
        name=name, path=path, swept={} if k is None else {"topk.k": k}, seed=seed, is_dense=k is None,
        twin=None if k is None else f"dense-s{seed}", steps=100, checkpoint_sha256="c" * 64, **state,
    )  # fmt: skip


def changed(runs, name, **changes):
    """The runs with one of them changed."""
    return [dataclasses.replace(run, **changes) if run.name == name else run for run in runs]
