"""Bundles with planted mean activations: what histories and matches of them are is known in advance."""

import dataclasses

import numpy as np

from tests.unit.bundles.reference import meta_of
from topklm.bundles import LayerStats, Reading, Sketch, TokenTable, open_bundle, write_bundle
from topklm.bundles.exponent import N_CODES, STRATA

CONTEXT = 4


def plant(
    path, means, counts, *, fired=None, fired_next=None, fired_runs=None, step=100, alpha=0.0, init="checkpoint",
    run="topk", cut=None, tail=1, anneal=50, windows="w" * 64, tokenizer="t" * 64, pieces=None, kinds=None,
    n_layers=None,
):  # fmt: skip
    """Write a bundle with these mean activations and open it.

    `means`: one [V, N] per layer, or {layer: [V, N]}. `counts` int [V]; `fired`, `fired_next` {layer: [N]} (by default
    every neuron with an activation fires on half of the tokens), `fired_runs` {layer: [layer + 1, N]}. `alpha` None: a
    dense model.
    """
    means = means if isinstance(means, dict) else dict(enumerate(means))
    counts = np.asarray(counts, np.int64)
    (vocab, width), n_tokens = next(iter(means.values())).shape, int(counts.sum())
    assert n_tokens % CONTEXT == 0
    n_layers = n_layers or len(means)
    is_topk = alpha is not None
    default = {
        layer: "topk" if cut or (alpha == 0 and layer < n_layers - tail) else "dense" for layer in means
    }  # fmt: skip
    kinds = default if kinds is None else kinds
    layers = {str(layer): kinds[layer] for layer in means}
    meta = meta_of(n_tokens // CONTEXT, CONTEXT, windows, layers, width, vocab)
    model = dataclasses.replace(
        meta.model, run=run, path=f"{path.parent}/runs/{run}/checkpoints/{step:010d}", step=step, init=init,
        alpha=alpha, n_layers=n_layers,
        topk={"k": 3, "n_dense_tail": tail, "anneal_steps": anneal} if is_topk else None,
        sha256=None if init == "random" else f"{step:064d}",
    )  # fmt: skip
    corpus = dataclasses.replace(meta.corpus, tokenizer_sha256=tokenizer)
    settings = dataclasses.replace(meta.settings, positive_part=False, token_fired=False)
    meta = dataclasses.replace(
        meta, model=model, corpus=corpus, reading=Reading(site="post", read_topk=cut), settings=settings
    )
    types = np.flatnonzero(counts)
    stats = []
    for layer, table in means.items():
        sums = np.asarray(table, np.float64)[types] * counts[types, None]
        count = np.where((table != 0).any(0), n_tokens // 2, 0) if fired is None else np.asarray(fired[layer])
        following = None if layer == n_layers - 1 else (count // 2 if fired_next is None else fired_next[layer])
        runs = None if fired_runs is None else fired_runs[layer]
        stats.append((layer, _stats(types, sums, count, following, runs, kinds[layer] == "topk", settings)))
    model_part = (np.ones((vocab, width)), pieces) if pieces else None
    write_bundle(path, meta, counts, np.arange(n_tokens // CONTEXT) * CONTEXT, stats, model=model_part, neurons=False)
    return open_bundle(path)


def _stats(types, sums, fired, fired_next, fired_runs, sparse, settings):
    width = sums.shape[1]
    none = np.zeros(width)
    histogram = np.zeros((N_CODES, width), np.int64)
    extra = {} if fired_runs is None else {"fired_runs": np.asarray(fired_runs, np.int64)}
    return LayerStats(
        tables={"sum": TokenTable(types=types, rows=sums)}, sum=sums.sum(0), square_sum=none, maximum=none,
        positive_sum=np.maximum(sums, 0).sum(0), fired=np.asarray(fired, np.int64),
        last_fired=np.zeros(width, np.int64), histogram=histogram, **extra,
        fired_next=None if fired_next is None else np.asarray(fired_next, np.int64),
        l0_histogram=np.zeros(width + 1, np.int64) if sparse else None,
        near_misses=np.zeros(width, np.int64) if sparse else None,
        margin_count=np.zeros(1, np.int64) if sparse else None, margin_sum=np.zeros(1) if sparse else None,
        margin_least=np.full(1, np.inf) if sparse else None,
        margin_histogram=np.zeros(N_CODES, np.int64) if sparse else None,
        top=Sketch(width, settings.top_contexts), sample=Sketch(width * STRATA, settings.sample_contexts),
    )  # fmt: skip
