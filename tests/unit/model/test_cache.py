"""The cache: prefill and decode give the logits of a full forward pass, whatever the lengths and the chunks."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.errors import ConfigError
from topklm.model import KVCache, ModelConfig, build_model
from topklm.sparsity import TopKConfig, set_alpha
from topklm.sparsity.patch import sparse_states

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


class Selections:
    """Of every sparse block and position: the selected set, and the margin at which it was decided."""

    def __init__(self, model):
        self.state = sparse_states(model)[0]
        self.seen = []

    def __enter__(self):
        self.state.recorder = self
        return self

    def __exit__(self, *error):
        self.state.recorder = None

    def see(self, block, activation, x):
        self.seen.append((activation.selected(x), activation.margin(x) / x.abs().amax(-1)))

    def layers(self, n):
        """[n, B, T, D] and [n, B, T]; the passes follow each other in T."""
        parts = [self.seen[layer::n] for layer in range(n)]
        return tuple(torch.stack([torch.cat([p[i] for p in part], 1) for part in parts]) for i in (0, 1))


@torch.no_grad()
def test_in_fp32_selections_flip_only_at_hairbreadth_margins_and_without_flips_logits_are_equal():
    """TopK is discontinuous (promise 11): what may differ is counted, and differs only where two values are equal."""
    config = dataclasses.replace(TINY, dim=64, n_layers=4, n_kv_heads=2)
    model = build_model(config, TopKConfig(k=8, n_dense_tail=1))
    x = tokens((16, 24))
    with Selections(model) as whole:
        full = model(x)
    with Selections(model) as parts:
        cache = new_cache(model, 16)
        cached = torch.cat([model(part, cache=cache) for part in x.split([9, *[1] * 15], dim=1)], 1)
    (expected, margins), (selected, _) = whole.layers(3), parts.layers(3)
    flipped = (expected != selected).any(-1)  # [3, B, T]
    assert flipped.float().mean() < 1e-3
    # A flip in a layer or position changes what comes after it; before the first one nothing may differ.
    same = ~flipped.any(0).cumsum(1).bool()  # [B, T]
    assert same.float().mean() > 0.9
    torch.testing.assert_close(cached[same], full[same], atol=1e-5, rtol=1e-5)
    first = flipped.any(0).cumsum(1).cumsum(1) == 1
    assert (margins[:, first][flipped[:, first]] < 1e-5).all()


@torch.no_grad()
def test_rows_are_left_out_repeated_and_reordered():
    model = build_model(TINY, TopKConfig(k=5, n_dense_tail=1)).double()
    rows = [tokens((n,), seed=n) for n in (3, 7, 5)]
    for chosen in ([0, 2], [2, 1], [1], [0, 0, 1, 2, 2], [2, 1, 0], [0, 1, 2]):
        cache = new_cache(model, 3)
        block = torch.stack([torch.nn.functional.pad(row, (0, 7 - len(row))) for row in rows])
        model(block, cache=cache)
        cache.rewind([len(row) for row in rows])
        cache.select(chosen)
        assert cache.batch == len(chosen)
        assert cache.lengths.tolist() == [len(rows[i]) for i in chosen]
        following = tokens((len(chosen), 2), seed=9)
        logits = model(following, cache=cache)
        for i, row in enumerate(chosen):
            whole = model(torch.cat((rows[row], following[i]))[None])[0, -2:]
            torch.testing.assert_close(logits[i], whole, atol=1e-12, rtol=0)


@torch.no_grad()
def test_what_a_slot_held_before_and_what_another_row_holds_is_never_seen():
    model = build_model(TINY, None).double()
    cache = new_cache(model, 2)
    model(tokens((2, 9)), cache=cache)
    for layer in cache.layers:  # a row that went wrong, and what lies beyond the other's length
        layer.keys[0], layer.values[0] = torch.nan, torch.nan
        layer.keys[1, :, 4:9], layer.values[1, :, 4:9] = 1e30, 1e30
    cache.rewind([9, 4])
    logits = model(tokens((2, 1), seed=1), cache=cache)
    whole = model(torch.cat((tokens((2, 9))[1, :4], tokens((2, 1), seed=1)[1]))[None])[0, -1:]
    torch.testing.assert_close(logits[1], whole, atol=1e-12, rtol=0)


@torch.no_grad()
def test_logits_at_chosen_columns_only():
    model = build_model(TINY, None).double()
    x, at = tokens((3, 8)), torch.tensor([[0, 7], [3, 3], [5, 1]])
    full = model(x)
    torch.testing.assert_close(model(x, at=at), full[torch.arange(3)[:, None], at], atol=1e-12, rtol=0)
    losses = model(x, x[:, :2], at=at, reduction="none")
    assert losses.shape == (3, 2)


@torch.no_grad()
def test_a_full_cache_says_so_and_stays_as_it_is():
    model = build_model(TINY, None)
    cache = new_cache(model, 2, capacity=6)
    model(tokens((2, 5)), cache=cache)
    with pytest.raises(ConfigError, match="room for 6 tokens a row; one holds 5 and 2 more come"):
        model(tokens((2, 2)), cache=cache)
    assert cache.lengths.tolist() == [5, 5]
    assert model(tokens((2, 1)), cache=cache).shape == (2, 1, TINY.vocab_size)
    with pytest.raises(ValueError, match="cannot be cut"):
        cache.rewind([7, 0])
    with pytest.raises(ConfigError, match="3 rows does not continue a cache of 2"):
        model(tokens((3, 1)), cache=new_cache(model, 2))
    with pytest.raises(ConfigError, match="document_ids"):
        model(tokens((2, 1)), document_ids=tokens((2, 1)), cache=new_cache(model, 2))
