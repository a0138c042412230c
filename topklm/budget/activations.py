"""What a forward pass keeps for the backward pass, by part, in bytes of one micro-batch on one rank.

Derived from `model/transformer.py`, operation by operation; every tensor once, however many operations keep it.
Compiled blocks keep what the min-cut of torch.compile chooses: each product's input and no fp32 copy of the stream.
"""

from __future__ import annotations

from topklm.budget.setting import Setting
from topklm.sparsity import TopKConfig
from topklm.sparsity.selection import record_dtype

Parts = dict[str, float]


def saved(setting: Setting) -> Parts:
    """Of the whole model until the backward pass begins: its blocks, the final norm, the tokens."""
    model, tokens = setting.model, setting.tokens
    sparse, dense = setting.sparse_blocks, model.n_layers - setting.sparse_blocks
    per_token = {name: tokens * size for name, size in _final(setting).items()}
    parts: Parts = {}
    for n, block in ((sparse, block_saved(setting, True)), (dense, block_saved(setting, False)), (1, per_token)):
        for name, size in block.items():
            parts[name] = parts.get(name, 0.0) + n * size
    return parts


def of_final_norm(setting: Setting) -> float:
    """Its input, which torch's kernel on a GPU takes as fp32."""
    return setting.tokens * _stream(setting)


def _stream(setting: Setting) -> float:
    """Per token: what RMSNorm keeps. On a GPU torch's kernel works on fp32, in bf16 on a copy."""
    return (setting.width if _norms_keep_the_stream(setting) else 4) * setting.model.dim + 4


def _final(setting: Setting) -> Parts:
    """Per token: beside the blocks."""
    model = setting.model
    return {
        "norm inputs": _stream(setting),
        "tokens, rotary table": 16 + 4 * model.head_width / setting.sequences,  # cos and sin, [T, d / 2] in fp32
        "document mask": setting.seq_len if model.document_mask else 0.0,
    }


def block_saved(setting: Setting, sparse: bool) -> Parts:
    """Of one block."""
    if setting.checkpointing == "none":
        per_token = _compiled(setting, sparse) if setting.compiled else eager_block(setting, sparse)
    else:
        per_token = _checkpointed(setting, sparse)
    return {name: setting.tokens * size for name, size in per_token.items()}


def eager_block(setting: Setting, sparse: bool) -> Parts:
    """Per token, without checkpointing: what recomputing a block brings back as well."""
    model, w = setting.model, setting.width
    q, kv = model.heads * model.head_width, model.kv_heads * model.head_width
    return {
        "norm inputs": 2 * _stream(setting),
        "norm outputs": 2 * w * model.dim,
        # As complex numbers, made anew for q and k; on a GPU they are views of the one table.
        "tokens, rotary table": 8 * model.head_width / setting.sequences if setting.on_cpu else 0.0,
        "queries, keys, values": w * (q + 2 * kv),
        "attention output": w * q + 4 * model.heads,  # with the logarithm of the softmax's sum, fp32
        "feed-forward": 2 * w * model.ffn_width,  # gate and up
        "TopK": _selection(setting) if sparse else 0.0,
        "document mask": w * setting.seq_len if model.document_mask else 0.0,  # SDPA makes it additive
    }


def _compiled(setting: Setting, sparse: bool) -> Parts:
    model, w = setting.model, setting.width
    eager = eager_block(setting, False)
    return eager | {
        "norm inputs": 2 * (w * model.dim + 4),  # the stream in the dtype of compute
        "tokens, rotary table": 0.0,
        "feed-forward": 3 * w * model.ffn_width,  # silu(gate) is made again
        "TopK": _compiled_selection(setting) if sparse else 0.0,
    }


def _checkpointed(setting: Setting, sparse: bool) -> Parts:
    """The block's input and the record of its selection; selective: also each matrix product and attention."""
    model, w = setting.model, setting.width
    full = {"block inputs": w * model.dim, "TopK": _record(setting) if sparse else 0.0}
    if setting.checkpointing == "full":
        return full
    eager = eager_block(setting, False)
    last = 0 if setting.compiled and not sparse else w * model.dim  # w2's product, which only a cut needs again
    return full | {
        "queries, keys, values": eager["queries, keys, values"],
        "attention output": eager["attention output"] + w * model.dim,  # wo's product
        "feed-forward": 2 * w * model.ffn_width + last,
    }


def recomputed(setting: Setting) -> float:
    """Bytes that the backward pass of one block makes again under checkpointing; the dearest block."""
    if setting.checkpointing == "none":
        return 0.0
    model, w = setting.model, setting.width
    parts = (_compiled if setting.compiled else eager_block)(setting, setting.sparse_blocks > 0)
    again = sum(parts.values())
    if setting.compiled or _norms_keep_the_stream(setting):
        again -= w * model.dim  # the block's input itself, which is there
    if setting.checkpointing == "selective":  # values, attention, gate and up are there too
        again -= w * (model.kv_heads * model.head_width + 2 * model.ffn_width) + parts["attention output"]
    return setting.tokens * again


def _norms_keep_the_stream(setting: Setting) -> bool:
    """And no copy of it in fp32."""
    return setting.width == 4 or setting.on_cpu


def gradients_in_flight(setting: Setting) -> float:
    """Gradients of activations at the widest place of a block's backward pass: the stream's, gate's and up's."""
    return setting.tokens * setting.width * (2 * setting.model.ffn_width + setting.model.dim)


def _record(setting: Setting) -> float:
    """Per token: what checkpointing keeps of a selection: bits while the cut fades in, indices or a mask. (The kernel's
    output is kept as well, which is the next block's input.)"""
    topk, dim = setting.topk, setting.model.dim
    if topk is None:
        return 0.0
    if setting.kernel:
        return dim / 8
    return topk.k * record_dtype(dim).itemsize if _by_index(topk) else dim


def _selection(setting: Setting) -> float:
    """Per token at alpha = 0, where it is most. With ReLU the output tells it, which a norm keeps anyway if it does not
    need a copy in fp32; with the identity indices or bits; activations by masks keep the mask as well."""
    topk = setting.topk
    if topk is None:
        return 0.0
    shared = _norms_keep_the_stream(setting)
    output = 0 if shared or topk.anneal_form == "identity" else setting.width * setting.model.dim
    if setting.kernel or _by_index(topk):
        return _record(setting) if topk.anneal_form == "identity" else output
    return setting.model.dim + output


def _compiled_selection(setting: Setting) -> float:
    topk = setting.topk
    if topk is None:
        return 0.0
    small = topk.anneal_form == "identity" and (setting.kernel or _by_index(topk))
    return _record(setting) if small else setting.model.dim  # output > 0, as a mask


def _by_index(topk: TopKConfig) -> bool:
    return topk.activation == "topk" and topk.schedule != "k" and topk.k_per_layer is None
