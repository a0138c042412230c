"""`generate`: prompts to completions, with one pass over each prompt and one position per token after it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from topklm.data import Tokenizer
from topklm.errors import ConfigError, NonFiniteError
from topklm.generate.completion import Completion, Stream
from topklm.generate.config import SamplingConfig
from topklm.generate.progress import GenerateProgress
from topklm.generate.prompts import encode_prompts
from topklm.generate.row import Row
from topklm.generate.sampling import choose, uniforms
from topklm.generate.sparse_inputs import SparseProjections, sparse_inputs
from topklm.model import KVCache, ModelConfig, Transformer

log = logging.getLogger("topklm.generate")
PREFILL = 1024
"""Positions of a prompt that go through the model at once; longer prompts go in parts, for memory."""


@torch.no_grad()
def generate(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Sequence[str] | Sequence[list[int]],
    config: SamplingConfig,
    *,
    batch_size: int = 16,
    context: int | None = None,
    bos: bool = True,
    numbers: Sequence[int] | None = None,
    stream: Stream | None = None,
    progress: bool = False,
    sparse_projections: SparseProjections = "auto",
) -> list[list[Completion]]:
    """Complete every prompt `config.n_samples` times: [prompt][sample], in the order of the prompts.

    Prompts are texts, which get a BOS token if `bos`, or lists of ids, which stay as they are. `batch_size` sequences
    are decoded together; in float64 it does not change the result. Prompt and completion have `context` tokens at most
    (`model.config.max_seqlen` if None): a completion that meets the end says so ("context"), and so does a warning.
    A draw is a function of (seed, number of the prompt, sample, step): `numbers` has those numbers, 0, 1, ... if None,
    so that a part of many prompts gets the completions that it gets among all.
    `stream` receives text while it is made; `progress` shows a bar. `sparse_projections`: whether blocks behind a TopK
    read only the entries that are not zero, which changes no more than rounding ("auto": where it is faster).

    The model runs where it is, in its own dtype and at its present alpha. Without a tokenizer (for prompts of ids)
    there is neither text nor EOS. Raises `ConfigError` before anything is generated, with all problems: prompts that
    are empty or leave no room in the context, settings out of range; `NonFiniteError` if logits are NaN or infinite.
    """
    if not isinstance(getattr(model, "config", None), ModelConfig):
        raise ConfigError(
            f"{type(model).__name__} is not this project's model; one of transformers has its own generate"
        )
    context = model.config.max_seqlen if context is None else context
    if numbers is not None and len(numbers) != len(prompts):
        raise ConfigError(f"there are {len(numbers)} numbers for {len(prompts)} prompts")
    encoded = encode_prompts(prompts, tokenizer, config, model.config.vocab_size, context, bos, batch_size)
    order = list(range(len(encoded)))
    if stream is None:  # equal lengths together waste the least; a reader wants the prompts in order
        order.sort(key=lambda i: len(encoded[i]))
    rows = [Row(p, s, encoded[p], context, config, tokenizer) for p in order for s in range(config.n_samples)]
    n_ids = model.config.vocab_size if tokenizer is None else min(tokenizer.vocab_size, model.config.vocab_size)
    sparse = sparse_inputs(model, sparse_projections, rows=min(batch_size, len(rows)), steps=config.max_tokens)
    with GenerateProgress(len(rows), progress) as shown, sparse:
        for start in range(0, len(rows), batch_size):
            _complete(model, rows[start : start + batch_size], config, numbers, n_ids, stream, shown)
    results = {(row.prompt, row.sample): row.completion() for row in rows}
    full = [key for key, completion in results.items() if completion.finish_reason == "context"]
    if full:
        log.warning("%d of %d completions ended at the context of %d tokens", len(full), len(rows), context)
    return [[results[p, s] for s in range(config.n_samples)] for p in range(len(encoded))]


def _complete(
    model: Transformer,
    rows: list[Row],
    config: SamplingConfig,
    numbers: Sequence[int] | None,
    n_ids: int,
    stream: Stream | None,
    progress: GenerateProgress,
) -> None:
    """Complete the rows of one batch. The host waits for the device once a token."""
    logits, cache = _prefill(model, rows)
    steps = max(row.room for row in rows)
    noise = None
    if config.temperature > 0:
        own = [row.prompt if numbers is None else numbers[row.prompt] for row in rows]
        drawn = np.stack([uniforms(config.seed, n, row.sample, steps) for n, row in zip(own, rows, strict=True)])
        noise = torch.from_numpy(drawn).to(logits.device)  # [B, steps]
    for step in range(steps):
        tokens, logprobs = choose(logits, None if noise is None else noise[:, step], config, n_ids)
        chosen = torch.stack((tokens.to(torch.float64), logprobs.to(torch.float64)), 1).tolist()
        for row, (token, logprob) in zip(rows, chosen, strict=True):
            if not math.isfinite(logprob):
                raise NonFiniteError(f"prompt {row.prompt}: the logits of token {step} after it are not finite")
            piece = row.push(int(token), logprob)
            if stream is not None and (piece.text or piece.finish_reason):
                stream(piece)
        kept = _unfinished(rows)
        progress.step(len(rows), len(rows) - len(kept))
        if not kept:
            return
        if len(kept) < len(rows):
            cache.select(kept)
            rows, tokens = [rows[i] for i in kept], tokens[kept]
            noise = None if noise is None else noise[kept]
        logits = model(tokens[:, None], cache=cache)[:, 0]  # [B, V]


def _prefill(model: Transformer, rows: list[Row]) -> tuple[Tensor, KVCache]:
    """Logits [B, V] after the rows' prompts, and a cache that holds the prompts. A prompt of many samples runs once."""
    prompts = {row.prompt: row.prompt_ids for row in rows}
    number = {prompt: i for i, prompt in enumerate(prompts)}
    weight = model.head_weight
    capacity = max(len(row.prompt_ids) + row.room for row in rows)
    cache = KVCache(model.config, len(prompts), capacity, device=weight.device, dtype=weight.dtype)
    cache.prompt_lengths = torch.tensor([len(ids) for ids in prompts.values()], device=weight.device)
    longest = max(map(len, prompts.values()))
    padded = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for i, ids in enumerate(prompts.values()):
        padded[i, : len(ids)] = torch.tensor(ids)
    padded = padded.to(weight.device)
    logits = weight.new_empty(len(prompts), model.config.vocab_size)
    for start in range(0, longest, PREFILL):
        end = min(start + PREFILL, longest)
        lengths = [min(len(ids), end) for ids in prompts.values()]
        last = torch.tensor([max(n - start, 1) - 1 for n in lengths], device=weight.device)  # [B] in this part
        made = model(padded[:, start:end], cache=cache, at=last[:, None])[:, 0]  # [B, V]
        ends_here = torch.tensor([start < len(ids) <= end for ids in prompts.values()], device=weight.device)
        logits = torch.where(ends_here[:, None], made, logits)
        cache.rewind(lengths)
    copies = [number[row.prompt] for row in rows]
    if copies != list(range(len(prompts))):
        cache.select(copies)
        logits = logits[copies]
    return logits, cache


def _unfinished(rows: Sequence[Row]) -> list[int]:
    """Rows that go on, those from the end in the places of finished ones, so that few have to be moved."""
    kept = list(range(len(rows)))
    i = 0
    while i < len(kept):
        if rows[kept[i]].finish_reason is None:
            i += 1
        else:
            kept[i] = kept[-1]
            kept.pop()
    return kept
