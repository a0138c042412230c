"""The published equations of the Llama block, in float64 NumPy, written without a look at the model's code."""

import numpy as np


def rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def rope(x, theta):
    """x [T, d]: rotate each pair (x[2j], x[2j+1]) of position t by the angle t * theta^(-2j/d)."""
    length, width = x.shape
    out = np.empty_like(x)
    for t in range(length):
        for j in range(width // 2):
            angle = t * theta ** (-2 * j / width)
            a, b = x[t, 2 * j], x[t, 2 * j + 1]
            out[t, 2 * j] = a * np.cos(angle) - b * np.sin(angle)
            out[t, 2 * j + 1] = a * np.sin(angle) + b * np.cos(angle)
    return out


def attention(x, w, prefix, config, documents):
    length, width = len(x), config.head_width
    q, k, v = (x @ w[f"{prefix}.{name}.weight"].T for name in ("wq", "wk", "wv"))
    out = np.zeros((length, config.heads * width))
    for head in range(config.heads):
        kv_head = head // (config.heads // config.kv_heads)
        qh = rope(q[:, head * width : (head + 1) * width], config.rope_theta)
        kh = rope(k[:, kv_head * width : (kv_head + 1) * width], config.rope_theta)
        vh = v[:, kv_head * width : (kv_head + 1) * width]
        for t in range(length):
            allowed = [s for s in range(t + 1) if documents[s] == documents[t]]
            scores = np.array([qh[t] @ kh[s] for s in allowed]) / np.sqrt(width)
            p = np.exp(scores - scores.max())
            out[t, head * width : (head + 1) * width] = (p / p.sum()) @ vh[allowed]
    return out @ w[f"{prefix}.wo.weight"].T


def topk(x, k, alpha=0.0):
    """x [T, D]: alpha x + (1 - alpha) relu(x) m, where m is 1 for the k largest entries of each row (Eq. 1-3)."""
    m = np.zeros_like(x)
    for t, row in enumerate(x):
        m[t, np.argsort(row)[len(row) - k :]] = 1
    return alpha * x + (1 - alpha) * np.maximum(x, 0) * m


def logits(tokens, w, config, documents=None, sparse=None, alpha=0.0):
    """tokens [T] -> logits [T, V]; w: parameter name -> array; documents [T], one document if None.

    `sparse`: the TopKConfig of a TopK model.
    """
    documents = [0] * len(tokens) if documents is None else documents
    h = w["tok_embeddings.weight"][tokens]
    for i in range(config.n_layers):
        p = f"layers.{i}"
        normed = rms_norm(h, w[f"{p}.attention_norm.weight"], config.norm_eps)
        h = h + attention(normed, w, f"{p}.attention", config, documents)
        x = rms_norm(h, w[f"{p}.ffn_norm.weight"], config.norm_eps)
        gate = x @ w[f"{p}.feed_forward.w1.weight"].T
        gate = gate / (1 + np.exp(-gate))
        h = h + (gate * (x @ w[f"{p}.feed_forward.w3.weight"].T)) @ w[f"{p}.feed_forward.w2.weight"].T
        if sparse is not None and i < config.n_layers - sparse.n_dense_tail:
            h = topk(h, sparse.k, alpha)
    head = w["tok_embeddings.weight" if config.weight_tying else "output.weight"]
    return rms_norm(h, w["norm.weight"], config.norm_eps) @ head.T


def loss(logits, targets):
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.mean([log_p[t, target] for t, target in enumerate(targets) if target != -100])
