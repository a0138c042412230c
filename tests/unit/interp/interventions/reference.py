"""The definitions of docs/interventions.md in float64 NumPy, token by token, written without a look at the code."""

import numpy as np

from tests.unit.model.reference import attention, rms_norm


def act(row, k, alpha=0.0, banned=()):
    """A(x) of one token [D] (Eq. 1-3, blend), where `banned` neurons are not candidates for the k places."""
    order = [i for i in sorted(range(len(row)), key=lambda i: (-row[i], i)) if i not in banned]
    kept = set(order[:k])
    return np.array([alpha * u + (1 - alpha) * (max(u, 0) if i in kept else 0) for i, u in enumerate(row)])


def changed(u, op, value):
    return {"add": lambda: u + value, "set": lambda: value, "mean": lambda: value, "scale": lambda: u * value,
            "zero": lambda: 0.0}[op]()  # fmt: skip


def layer(pre, k, edits, alpha=0.0):
    """[T, D] stream before the activation (k None: dense) to what leaves the block.

    edits: dictionaries with site, op, neurons, value (a list), refill, where (bool [T]).
    """
    out = []
    for t, row in enumerate(pre):
        row = row.copy()
        mine = [edit for edit in edits if edit["where"][t]]
        for edit in mine:
            if edit["site"] == "pre":
                for i, value in zip(edit["neurons"], edit["value"], strict=True):
                    row[i] = changed(row[i], edit["op"], value)
        banned = {i for edit in mine if edit.get("refill") for i in edit["neurons"]}
        y = row if k is None else act(row, k, alpha, banned)
        y = y.copy()
        for i in banned:
            y[i] = 0.0
        for edit in mine:
            if edit["site"] == "post":
                for i, value in zip(edit["neurons"], edit["value"], strict=True):
                    y[i] = changed(y[i], edit["op"], value)
        out.append(y)
    return np.array(out)


def logits(tokens, w, config, sparse, edits, alpha=0.0):
    """tokens [T] -> logits [T, V] with `edits` {layer: [edit]}."""
    h = w["tok_embeddings.weight"][tokens]
    for i in range(config.n_layers):
        p = f"layers.{i}"
        normed = rms_norm(h, w[f"{p}.attention_norm.weight"], config.norm_eps)
        h = h + attention(normed, w, f"{p}.attention", config, [0] * len(tokens))
        x = rms_norm(h, w[f"{p}.ffn_norm.weight"], config.norm_eps)
        gate = x @ w[f"{p}.feed_forward.w1.weight"].T
        up = x @ w[f"{p}.feed_forward.w3.weight"].T
        h = h + (gate / (1 + np.exp(-gate)) * up) @ w[f"{p}.feed_forward.w2.weight"].T
        is_sparse = sparse is not None and i < config.n_layers - sparse.n_dense_tail
        h = layer(h, sparse.k if is_sparse else None, edits.get(i, []), alpha)
    return rms_norm(h, w["norm.weight"], config.norm_eps) @ w["output.weight"].T
