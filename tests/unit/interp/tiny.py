"""A tiny model with its checkpoint, two sources, and what every statistic of it is by the published equations."""

import dataclasses
import json

import numpy as np
import torch

from tests.unit.bundles.reference import Tokens, brute
from tests.unit.data.synthetic import documents, write_source
from tests.unit.model.reference import attention, rms_norm, topk
from topklm.bundles import open_bundle
from topklm.interp import CollectConfig, collect
from topklm.model import ModelConfig, build_model
from topklm.sparsity import TopKConfig

V, T, K = 50, 8, 4
MODEL = ModelConfig(dim=16, n_layers=3, n_heads=2, vocab_size=V, max_seqlen=T, multiple_of=8)
SPARSE = TopKConfig(k=K, n_dense_tail=1, anneal_steps=10)


def write_data(root):
    """Held-out tokens: 203 of a, 61 of b; windows of 8: 25 and 7."""
    for name, n_val, factor in (("a", 203, 7), ("b", 61, 3)):
        held_out = [(ids * factor + 3) % V for ids in documents(n_val, 5)]
        write_source(root, name, [ids % V for ids in documents(100)], held_out)
    return root


def write_checkpoint(directory, data, topk=SPARSE, step=10, name="model.pth", **model):
    """A consolidated file of initial weights, made larger so that layers differ; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(MODEL, **model)
    weights = {name: 1.5 * tensor for name, tensor in build_model(config, None).state_dict().items()}
    torch.save({"model": weights, "step": step}, directory / name)
    run = {
        "name": "tiny", "model": dataclasses.asdict(config), "topk": None if topk is None else dataclasses.asdict(topk),
        "data": {"root_dir": str(data), "sources": {"a": 1.0, "b": 1.0}, "seq_len": T},
    }  # fmt: skip
    (directory / "params.json").write_text(json.dumps(run))
    return directory / name


def collected(checkpoint, out, **settings):
    """The bundle of a collection in float64."""
    usual = {"tokens": 100_000, "dtype": "fp64", "near_miss": 0.1, "top_contexts": 3, "sample_contexts": 2,
             "token_fired": True, "positive_part": True, "batch_size": 3}  # fmt: skip
    config = CollectConfig(ckpt=str(checkpoint), out=str(out), **(usual | settings))
    assert list(config.problems()) == []
    (path,) = collect(config)
    return open_bundle(path)


def streams(tokens, weights, config, sparse, alpha, documents_of=None):
    """[(pre, output)] of each layer, float64 [T, N] each, for one sequence."""
    w, same = weights, [0] * len(tokens) if documents_of is None else documents_of
    h = w["tok_embeddings.weight"][tokens]
    found = []
    for i in range(config.n_layers):
        p = f"layers.{i}"
        h = h + attention(
            rms_norm(h, w[f"{p}.attention_norm.weight"], config.norm_eps), w, f"{p}.attention", config, same
        )
        x = rms_norm(h, w[f"{p}.ffn_norm.weight"], config.norm_eps)
        gate = x @ w[f"{p}.feed_forward.w1.weight"].T
        h = (
            h
            + (gate / (1 + np.exp(-gate)) * (x @ w[f"{p}.feed_forward.w3.weight"].T))
            @ w[f"{p}.feed_forward.w2.weight"].T
        )
        pre = h
        if sparse is not None and i < config.n_layers - sparse.n_dense_tail:
            h = topk(pre, sparse.k, alpha)
        found.append((pre, h))
    return found


def selection(pre, k):
    """bool [T, N]: the k largest entries of each row."""
    mask = np.zeros(pre.shape, bool)
    np.put_along_axis(mask, np.argsort(pre, axis=1)[:, pre.shape[1] - k :], True, axis=1)
    return mask


def _run(fired):
    """How many of the last layers fired without a break."""
    n = 0
    while n < len(fired) and fired[-1 - n]:
        n += 1
    return n


def reference(bundle, plan_windows, data, topk=SPARSE, alpha=0.0, site="post", cut=None, documents_of=None, **model):
    """{layer: LayerStats} of these windows of the bundle's model, by the equations."""
    config = dataclasses.replace(MODEL, **model)
    weights = {n: (1.5 * t).double().numpy() for n, t in build_model(config, None).state_dict().items()}
    corpus = np.concatenate(
        [np.concatenate([(ids * f + 3) % V for ids in documents(n, 5)]) for n, f in ((203, 7), (61, 3))]
    )
    layers = [[] for _ in range(config.n_layers)]
    for start in plan_windows:
        ids = corpus[start : start + T]
        same = None if documents_of is None else documents_of(start)
        for i, pair in enumerate(streams(ids, weights, config, topk, alpha, same)):
            layers[i].append(pair)
    types = np.concatenate([corpus[start : start + T] for start in plan_windows])
    positions = np.concatenate([np.arange(start, start + T) for start in plan_windows])
    made = []
    for i, pairs in enumerate(layers):
        pre, out = (np.concatenate(x) for x in zip(*pairs, strict=True))
        is_sparse = topk is not None and i < config.n_layers - topk.n_dense_tail
        if is_sparse:
            mask = selection(pre, topk.k)
            made.append(Tokens(types, positions, pre if site == "pre" else out, mask & (pre > 0), None, pre, mask))
        elif cut is not None:
            mask = selection(out, cut.k)
            values = np.where(mask, np.maximum(out, 0), 0)
            made.append(Tokens(types, positions, values, values > 0, None, out, mask))
        else:
            made.append(Tokens(types, positions, out, out > 0))
    found = {}
    for i, tokens in enumerate(made):
        tokens.next_fired = made[i + 1].fired if i + 1 < len(made) else None
        tokens.layer = i
        tokens.runs = np.array([[_run([made[j].fired[t, n] for j in range(i + 1)]) for n in range(config.dim)]
                                for t in range(len(types))])  # fmt: skip
        stats = brute(tokens, V, bundle.meta.settings)
        if tokens.pre is not None and bundle.layer(i).kind == "dense":  # the definition's tables are a TopK layer's
            as_dense = Tokens(types, positions, tokens.values, tokens.fired)
            stats.tables["positive"] = brute(as_dense, V, bundle.meta.settings).tables["positive"]
        found[i] = stats
    return found
