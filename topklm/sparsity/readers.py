"""What reads the residual stream after a block: the matrices of the next block, or the unembedding after the last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from topklm.errors import ConfigError
from topklm.sparsity.blocks import find_blocks

_BLOCK = (
    ("attention_norm", ("attention.wq", "attention.wk", "attention.wv")),  # Meta Lingua's names, and ours
    ("ffn_norm", ("feed_forward.w1", "feed_forward.w3")),
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),  # Hugging Face's Llama
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)
_HEAD = (
    ("norm", "output"),
    ("model.norm", "lm_head"),
    ("norm", "tok_embeddings"),
    ("model.norm", "model.embed_tokens"),
)


def readers_of(model: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """For each block (matrices [out, D], gains [D] of the norm before each) that read the stream it leaves.

    Of the next block those of queries, keys and values and the two that enter the feed-forward product; after the last
    block the unembedding. Raises `ConfigError` for a model that names them otherwise.
    """
    blocks = find_blocks(model)
    for block in blocks[1:]:
        pairs = [(norm, name) for norm, names in _BLOCK for name in names]
        yield _weights(block, pairs)
    yield _weights(model, [pair for pair in _HEAD if _find(model, pair[1]) is not None][:1])


def _weights(owner: nn.Module, pairs: list[tuple[str, str]]) -> tuple[list[Tensor], list[Tensor]]:
    found = [(_find(owner, name), _find(owner, norm)) for norm, name in pairs]
    both = [(matrix, gain) for matrix, gain in found if matrix is not None and gain is not None]
    if not both:
        raise ConfigError(
            f"normtopk weighs an entry by the matrices that read it and finds none in {type(owner).__name__} under the "
            "names of Meta Lingua or Hugging Face's Llama; take another activation"
        )
    return [matrix for matrix, _ in both], [gain for _, gain in both]


def _find(owner: Any, path: str) -> Tensor | None:
    for name in (*path.split("."), "weight"):
        owner = getattr(owner, name, None)
    return owner
