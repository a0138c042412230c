"""Bundles of runs whose neurons are known: the same in all, in another order, and some that are the run's own."""

import dataclasses

import numpy as np

from tests.unit.interp.planted import plant
from topklm.bundles import open_bundle
from topklm.bundles.meta import write_meta

V, N, OWN = 60, 24, 6
"""Token types; neurons; how many of them every run has for itself."""
COUNTS = np.concatenate([np.full(40, 20), np.full(20, 40)])


def means_of(seed, layers=2):
    """[V, N] per layer, and the order: neuron `order[i]` is feature i, the last `OWN` of which are the run's own."""
    shared = np.random.default_rng(99)
    own = np.random.default_rng(seed)
    order = own.permutation(N)
    tables = []
    for _ in range(layers):
        features = shared.exponential(size=(V, N)) * shared.choice([0.1, 1.0, 10.0], size=N)
        features[:, N - OWN :] = own.exponential(size=(V, OWN))
        table = np.empty((V, N))
        table[:, order] = features + 0.01 * own.exponential(size=(V, N))
        tables.append(table)
    return tables, order


def run(directory, seed, *, name=None, initial=None, **planted):
    """Path of the bundle of a run; `initial`: seed of its initial weights, by default its own."""
    initial = seed if initial is None else initial
    tables = planted.pop("means", None) or means_of(seed)[0]
    init = planted.get("init", "checkpoint")
    path = directory / f"{name or 'run'}-{init}-{seed}-{planted.get('step', 100)}"
    bundle = plant(path, tables, planted.pop("counts", COUNTS), run=name or f"run{seed}", **planted)
    sha256 = None if init == "random" else f"{seed:032d}{planted.get('step', 100):032d}"
    model = dataclasses.replace(bundle.meta.model, model={"dim": N, "seed": initial}, sha256=sha256)
    write_meta(path, dataclasses.replace(bundle.meta, model=model))
    open_bundle(path).check()
    return path
