"""Sizes of the Llama transformer, in Meta Lingua's field names, with the closed forms that follow from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from topklm.errors import Problem
from topklm.model.rope_scaling import RopeScaling


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama transformer. Defaults are Meta Lingua's unless said otherwise."""

    dim: int = 512
    """D, the width of the residual stream; in a TopK LM the number of neurons of each layer."""
    n_layers: int = 8
    """L, the number of blocks."""
    head_dim: int | None = None
    """Width of one attention head; dim / n_heads if null."""
    n_heads: int | None = None
    """Number of query heads; dim / head_dim if null."""
    n_kv_heads: int | None = None
    """Number of key and value heads (grouped-query attention); n_heads if null."""
    ffn_dim: int | None = None
    """F, the width of the feed-forward layer, as it is. Not in Lingua: it keeps F while dim grows (the paper's
    configurations). Excludes ffn_dim_multiplier; if null, F follows from Lingua's rule."""
    ffn_dim_multiplier: float | None = None
    """Lingua's rule: F = multiple_of * ceil(int(ffn_dim_multiplier * int(8 dim / 3)) / multiple_of)."""
    multiple_of: int = 256
    """Rounding of F in Lingua's rule."""
    norm_eps: float = 1e-5
    """Epsilon of RMSNorm."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies theta^(-2j / head_dim)."""
    rope_scaling: RopeScaling | None = None
    """What changed these frequencies for a longer context, in imported models (Llama 3.1). Not in Lingua."""
    init_base_std: float | None = None
    """Standard deviation of the blocks' initial weights; by fan-in if null. Never the embedding's or the head's."""
    init_std_factor: Literal["disabled", "global_depth", "current_depth", "dim_ratio"] = "disabled"
    """What divides the std of wo and w2: 1, sqrt(2(L+1)), sqrt(2(depth+1)) or dim/4096."""
    max_seqlen: int = 1024
    """Longest sequence that the model is meant for; training sets it to data.seq_len."""
    seed: int = 42
    """Seed of the initial weights."""
    vocab_size: int = -1
    """V; training takes it from the prepared data's tokenizer if it is -1."""
    weight_tying: bool = False
    """Whether the head is the embedding matrix."""
    sliding_window: int | None = None
    """Only null: attention is causal over the whole sequence."""
    document_mask: bool = False
    """Whether attention stays inside a document when several are packed into one sequence. Not in Lingua."""
    backend: Literal["native", "lingua"] = "native"
    """Whose blocks are trained: native, or those of a Meta Lingua checkout on PYTHONPATH. Same parameters, same
    checkpoints; `load_model` always gives the native model. Not in Lingua."""
    loss_chunk: int = 1024
    """Tokens whose fp32 logits are held at a time by the loss. Changes memory and speed, not the result. Ours."""

    def problems(self) -> Iterator[Problem]:
        for name in ("dim", "n_layers", "multiple_of", "max_seqlen", "loss_chunk"):
            if getattr(self, name) < 1:
                yield Problem(name, f"{getattr(self, name)} is below 1")
        for name in ("head_dim", "n_heads", "n_kv_heads", "ffn_dim", "ffn_dim_multiplier", "init_base_std"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                yield Problem(name, f"{value} must be above 0 (or null)")
        if self.vocab_size != -1 and self.vocab_size < 1:
            yield Problem("vocab_size", f"{self.vocab_size} must be at least 1, or -1 for the tokenizer's")
        if self.sliding_window is not None:
            yield Problem("sliding_window", f"{self.sliding_window}: there is no sliding-window attention, only null")
        if not -(2**62) < self.seed < 2**62:
            yield Problem("seed", f"{self.seed} is too large")
        if self.norm_eps < 0:
            yield Problem("norm_eps", f"{self.norm_eps} is negative")
        if self.rope_theta <= 0:
            yield Problem("rope_theta", f"{self.rope_theta} is not above 0")
        if self.ffn_dim is not None and self.ffn_dim_multiplier is not None:
            yield Problem(
                "ffn_dim",
                f"{self.ffn_dim} is given beside ffn_dim_multiplier {self.ffn_dim_multiplier}; give one, not both",
            )
        if self.backend == "lingua" and self.n_heads and self.head_dim and self.dim % self.n_heads:
            yield Problem(
                "backend", f"Lingua's blocks need a dim divisible by n_heads, not {self.dim} and {self.n_heads}"
            )
        yield from self._head_problems()

    def _head_problems(self) -> Iterator[Problem]:
        if any((n or 1) < 1 for n in (self.n_heads, self.head_dim, self.n_kv_heads)) or self.dim < 1:
            return
        if self.n_heads is None and self.head_dim is None:
            yield Problem("n_heads", "is null, and so is head_dim; give n_heads or head_dim")
        elif self.head_dim is None and self.dim % (self.n_heads or 1):
            yield Problem("n_heads", f"dim {self.dim} is not divisible by {self.n_heads} heads; give head_dim too")
        elif self.n_heads is None and self.dim % (self.head_dim or 1):
            yield Problem("head_dim", f"dim {self.dim} is not divisible by head_dim {self.head_dim}; give n_heads too")
        elif self.heads % self.kv_heads:
            yield Problem("n_kv_heads", f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        elif self.head_width % 2:
            yield Problem("head_dim", f"{self.head_width} is odd; rotary embeddings need pairs")

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.n_heads or self.dim // (self.head_dim or self.dim)

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.n_kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.head_dim or self.dim // self.heads

    @property
    def ffn_width(self) -> int:
        """F."""
        if self.ffn_dim is not None:
            return self.ffn_dim
        return lingua_ffn_width(self.dim, self.multiple_of, self.ffn_dim_multiplier)

    @property
    def n_block_params(self) -> int:
        """Parameters of the blocks and the final norm."""
        attention = self.dim * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        return self.n_layers * (attention + 3 * self.dim * self.ffn_width + 2 * self.dim) + self.dim

    @property
    def n_params(self) -> int:
        """All parameters."""
        return self.n_block_params + self.vocab_size * self.dim * (1 if self.weight_tying else 2)


def lingua_ffn_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """F by Lingua's rule."""
    width = int(8 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)
