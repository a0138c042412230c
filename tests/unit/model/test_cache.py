"""The cache: prefill and decode give the logits of a full forward pass, whatever the lengths and the chunks."""

import dataclasses
import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.model import KVCache, ModelConfig, build_model
from topklm.sparsity import TopKConfig, set_alpha

TINY = ModelConfig(dim=24, n_layers=3, n_heads=4, multiple_of=8, vocab_size=31, max_seqlen=32)
VARIANTS = (
    TINY,
    dataclasses.replace(TINY, n_kv_heads=2, weight_tying=True),
    dataclasses.replace(TINY, head_dim=10, n_kv_heads=1),
)


def tokens(shape, seed=0):
    return torch.randint(0, TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def new_cache(model, batch, capacity=32):
    weight = model.head_weight
    return KVCache(model.config, batch, capacity, device=weight.device, dtype=weight.dtype)


def fed(model, rows, cuts):
    """Logits of every row, fed to one cache in parts between `cuts`, padded where a row is shorter."""
    cache = new_cache(model, len(rows))
    made = [[] for _ in rows]
    longest = max(map(len, rows))
    bounds = sorted({0, longest, *(c for c in cuts if c < longest)})
    for start, end in itertools.pairwise(bounds):
        block = torch.full((len(rows), end - start), 7)
        for i, row in enumerate(rows):
            part = row[start:end]
            block[i, : len(part)] = part
        logits = model(block, cache=cache)
        cache.rewind([min(end, len(row)) for row in rows])
        for i, row in enumerate(rows):
            made[i].append(logits[i, : max(0, len(row) - start)])
    assert cache.lengths.tolist() == [len(row) for row in rows]
    return [torch.cat(parts) for parts in made]


@settings(deadline=None, max_examples=60)
@given(st.data())
@torch.no_grad()
def test_any_division_of_any_batch_gives_the_logits_of_a_full_pass(data):
    config = data.draw(st.sampled_from(VARIANTS))
    k = data.draw(st.sampled_from([None, 1, 5, 24]))
    model = build_model(config, None if k is None else TopKConfig(k=k, n_dense_tail=1)).double()
    if k is not None:
        set_alpha(model, data.draw(st.sampled_from([0.0, 0.5])))
    rows = [tokens((n,), seed=i) for i, n in enumerate(data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4)))]
    cuts = data.draw(st.one_of(st.just(range(1, 20)), st.lists(st.integers(1, 19))))
    for row, logits in zip(rows, fed(model, rows, cuts), strict=True):
        torch.testing.assert_close(logits, model(row[None])[0], atol=1e-11, rtol=0)
