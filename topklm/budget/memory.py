"""Memory of one rank at the moments of a step where it can be highest, by part, in bytes.

The tensors alone; what the framework and the allocator need beside them is in `needed`. FSDP2 as `parallelize` sets it
up: a group per block and the root group, which stays gathered from its forward pass to its backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from topklm.budget import activations, sizes
from topklm.budget.setting import Setting

PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "communication")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One moment of a step."""

    name: str
    weights: float
    """fp32 shards, and the gathered weights of the root and of the block at work."""
    gradients: float
    """fp32 shards, those that are not reduced yet, and of micro-batches before the last the whole fp32 gradient."""
    optimizer: float
    """Two moments, fp32 shards."""
    activations: float
    """Kept for the backward pass, recomputed, and gradients of them."""
    loss: float
    """Chunks of logits, the head's gradient, the stream's."""
    communication: float
    """Buffers of all-gather (of the next block) and reduce-scatter (fp32)."""

    @property
    def total(self) -> float:
        return sum(getattr(self, part) for part in PARTS)

    def parts(self) -> dict[str, float]:
        """Bytes by part, in the order of `PARTS`."""
        return {part: getattr(self, part) for part in PARTS}

    def in_gib(self) -> dict[str, float]:
        """The same in GiB."""
        return {part: size / 2**30 for part, size in self.parts().items()}


def moments(setting: Setting) -> list[Moment]:
    """In the order of a step: the loss, the backward pass of the last block and its reduction, that of the second,
    the reduction of the root group, the optimizer. Of the last micro-batch, when all others' gradients are there."""
    model, shards, w = setting.model, setting.shards, setting.width
    block, root = sizes.block(model), sizes.root(model)
    whole = model.n_params if not setting.wrapped else sizes.sharded(model, shards)
    kept = sum(activations.saved(setting).values())
    of_last = sum(activations.block_saved(setting, sparse=setting.sparse_blocks == model.n_layers).values())
    of_first = sum(activations.block_saved(setting, sparse=setting.sparse_blocks > 0).values())
    working = activations.recomputed(setting) + activations.gradients_in_flight(setting)
    head = model.vocab_size * model.dim
    stream = w * setting.tokens * model.dim

    if setting.wrapped:
        gathered_root, gathered_block = w * root.padded(shards), w * block.padded(shards)
        # A block's gradient when its backward pass is done; in fp32 it is what is accumulated.
        fresh = w * block.numel
        reduce_block, reduce_root = 4 * block.padded(shards), 4 * root.padded(shards)
        share = 4 * block.shard(shards)
    else:
        gathered_root = gathered_block = reduce_block = reduce_root = 0
        fresh = share = 4 * block.numel
    accumulated = 4 * model.n_params if setting.micro_batches > 1 else 0
    if accumulated and w == 4:
        fresh = 0  # added in place
        share *= setting.wrapped

    def moment(name: str, *, weights: float = 0, gradients: float = 0, activations: float = 0, loss: float = 0,
               communication: float = 0) -> Moment:  # fmt: skip
        return Moment(
            name=name, weights=4 * whole + weights, gradients=gradients, optimizer=8 * whole, activations=activations,
            loss=loss, communication=communication,
        )  # fmt: skip

    ahead = gathered_block * (model.n_layers > 1) * (shards > 1)
    # Near the end of the backward pass, where the next block is gathered and the one before reduced for the last time:
    # the second block. What is not reduced yet of accumulated gradients goes down as shards come in.
    late = min(1, model.n_layers - 1)
    done = model.n_layers - 1 - late
    left = accumulated - (4 * done * block.numel if setting.wrapped and accumulated else 0)
    of_ffn = min(fresh, 2 * w * model.dim * model.ffn_width)  # w2's and one more of them
    # The final norm is done with when the last block begins, and the gradient of the stream is there.
    under_way = kept - activations.of_final_norm(setting)
    return [
        moment("loss", weights=gathered_root, gradients=accumulated, activations=kept, loss=_loss(setting),
               communication=gathered_block * (shards > 1)),
        moment("backward pass, last block", weights=gathered_root + gathered_block, gradients=accumulated + of_ffn,
               activations=under_way + working, loss=w * head, communication=ahead),
        moment("reduction of the last block", weights=gathered_root, gradients=accumulated + fresh,
               activations=under_way - of_last + stream, loss=w * head, communication=ahead + reduce_block),
        moment("backward pass, second block", weights=gathered_root + gathered_block,
               gradients=left + done * share + of_ffn, activations=(late + 1) * of_first + working, loss=w * head,
               communication=reduce_block * (done > 0) + ahead),
        moment("reduction of embedding and head", weights=gathered_root, communication=reduce_root,
               gradients=model.n_layers * share + w * root.numel if setting.wrapped else 4 * model.n_params),
        moment("optimizer", gradients=4 * whole),
    ]  # fmt: skip


def peak(setting: Setting) -> Moment:
    """The moment with the most."""
    return max(moments(setting), key=lambda moment: moment.total)


def needed(setting: Setting, slack: float, context: float) -> float:
    """Bytes that a rank's GPU must have: the peak, a share of it for the allocator's gaps, and the fixed part of CUDA
    and NCCL."""
    return peak(setting).total * (1 + slack) + context


def _loss(setting: Setting) -> float:
    """While the loss is made: the normed stream and its gradient, and of a chunk its logits and softmax in fp32, or the
    softmax, its rounded gradient and its share of the head's gradient, which is summed in fp32 (model/loss.py)."""
    model, w = setting.model, setting.width
    chunk = min(setting.tokens, model.loss_chunk) * model.vocab_size
    head = model.vocab_size * model.dim
    several = setting.tokens > model.loss_chunk
    total = 4 * head if several or w == 2 else 0  # in fp32 the share of the only chunk is the sum
    return 2 * w * setting.tokens * model.dim + max(
        8 * chunk + 4 * head * several, (6 if w == 2 else 4) * chunk + w * head + total
    )
