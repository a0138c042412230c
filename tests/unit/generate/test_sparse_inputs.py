"""Projections of the entries that are not zero: equal to the plain ones, and nothing left behind."""

import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from topklm.errors import NonFiniteError
from topklm.generate import SamplingConfig, generate
from topklm.generate import sparse_inputs as module
from topklm.generate.sparse_inputs import SparseInputAttention, sparse_inputs
from topklm.interp.interventions import Intervention, intervene
from topklm.model import KVCache, ModelConfig, build_model
from topklm.model.transformer import Attention
from topklm.sparsity import TopKConfig, set_alpha

SIZES = {"dim": 32, "n_layers": 5, "n_heads": 4, "multiple_of": 8, "vocab_size": 50, "max_seqlen": 64}
GROUPED, TIED = {"n_kv_heads": 2}, {"weight_tying": True}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [1, 8, 2]]


def small(topk=TopKConfig(k=6, n_dense_tail=2), dtype=torch.float64, **sizes):  # noqa: B008
    model = build_model(ModelConfig(**{**SIZES, **sizes}), topk).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


@torch.no_grad()
def decoded(model, steps=9):
    """Logits [steps + 1, B, V] of unequal prompts and the tokens 0, 1, ... after them, with a cache."""
    cache = KVCache(model.config, len(PROMPTS), 32, device="cpu", dtype=model.head_weight.dtype)
    longest = max(map(len, PROMPTS))
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in PROMPTS])
    out = [model(tokens, cache=cache, at=torch.tensor([[len(ids) - 1] for ids in PROMPTS]))[:, 0]]
    cache.rewind([len(ids) for ids in PROMPTS])
    for step in range(steps):
        out.append(model(torch.full((len(PROMPTS), 1), step), cache=cache)[:, 0])
    return torch.stack(out)


@pytest.fixture
def bags(monkeypatch):
    """The number of entries of each projection that was made of them."""
    seen, own = [], F.embedding_bag

    def counted(columns, *args, **kwargs):
        seen.append(len(columns))
        return own(columns, *args, **kwargs)

    monkeypatch.setattr(F, "embedding_bag", counted)
    return seen


@pytest.mark.parametrize("sizes", [{}, GROUPED, TIED, {**GROUPED, **TIED, "head_dim": 6}])
def test_logits_of_a_decode_are_those_of_the_dense_way(sizes, bags):
    model = small(**sizes)
    expected = decoded(model)
    assert not bags
    with sparse_inputs(model, "always", rows=3, steps=9) as blocks:
        assert blocks == 3  # 1, 2 and 3: block 0 reads the embedding, block 4 a dense one
        found = decoded(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert len(bags) == 3 * 9  # every step, and no prompt
    assert 0 < max(bags) <= 3 * 6


@pytest.mark.parametrize("form", ["identity", "relu"])
def test_negative_entries_count_as_well(form, bags):
    model = small(TopKConfig(k=30, n_dense_tail=0, anneal_form=form))
    expected = decoded(model)
    with sparse_inputs(model, "always", rows=3, steps=9):
        torch.testing.assert_close(decoded(model), expected, rtol=0, atol=1e-12)
    assert (max(bags) == 3 * 30) == (form == "identity")


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_completions_and_draws_are_the_same(temperature, batch_size, bags):
    model = small(**GROUPED)
    config = SamplingConfig(max_tokens=12, temperature=temperature, n_samples=2, seed=3)
    made = {
        choice: generate(model, None, PROMPTS, config, batch_size=batch_size, context=18, sparse_projections=choice)
        for choice in ("never", "always")
    }
    assert bags
    for off, on in zip(*([c for row in made[x] for c in row] for x in made), strict=True):
        assert (on.ids, on.finish_reason) == (off.ids, off.finish_reason)
        assert on.logprobs == pytest.approx(off.logprobs, abs=1e-12)


@pytest.mark.parametrize("topk", [None, TopKConfig(k=6, n_dense_tail=5), TopKConfig(activation="relu")])
def test_nothing_changes_where_nothing_is_cut_to_k(topk, bags):
    model = small(topk)
    expected = decoded(model)
    with sparse_inputs(model, "always", rows=3, steps=9) as blocks:
        assert blocks == 0
        assert torch.equal(decoded(model), expected)
    assert not bags


def test_nothing_changes_while_annealing(bags):
    model = small()
    set_alpha(model, 0.25)
    expected = decoded(model)
    with sparse_inputs(model, "always", rows=3, steps=9) as blocks:
        assert blocks == 0
        assert torch.equal(decoded(model), expected)
    set_alpha(model, 0)
    with sparse_inputs(model, "always", rows=3, steps=9) as blocks:
        assert blocks == 3
        set_alpha(model, 0.25)  # meanwhile: the entries are too many, and are seen to be
        assert torch.equal(decoded(model), expected)
    assert not bags


def test_the_model_is_afterwards_what_it_was_also_after_an_error():
    model = small()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inside = [dict(module.__dict__) for module in model.modules()]
    classes = [type(m) for m in model.modules()]
    expected = decoded(model)

    def check():
        assert [type(m) for m in model.modules()] == classes
        assert [dict(m.__dict__) for m in model.modules()] == inside
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(decoded(model), expected)

    def fail(piece):
        assert any(type(layer.attention) is SparseInputAttention for layer in model.layers)
        assert list(model.state_dict()) == list(weights)
        raise KeyboardInterrupt

    config = SamplingConfig(max_tokens=5, temperature=0)
    generate(model, None, PROMPTS, config, sparse_projections="always")
    check()
    with pytest.raises(KeyboardInterrupt):
        generate(model, None, PROMPTS, config, stream=fail, sparse_projections="always")
    check()
    with sparse_inputs(model, "always", rows=1, steps=1), sparse_inputs(model, "always", rows=1, steps=1) as blocks:
        assert blocks == 0  # the outer one does them already
    check()


@pytest.mark.parametrize(
    "change",
    [
        {"site": "pre", "op": "add", "value": 9.0},
        {"site": "post", "op": "set", "value": -2.0},
        {"site": "post", "op": "zero"},
        {"site": "post", "op": "zero", "refill": True},
    ],
)
def test_interventions_act_as_before(change, bags):
    model = small()
    one = Intervention(layers=[0, 2], neurons=[*range(0, 32, 3)], positions="generated", **change)
    config = SamplingConfig(max_tokens=10, temperature=0, stop_at_eos=False)
    with intervene(model, [one]):
        off = generate(model, None, PROMPTS, config, sparse_projections="never")
        on = generate(model, None, PROMPTS, config, sparse_projections="always")
    plain = generate(model, None, PROMPTS, config, sparse_projections="never")
    assert [c.logprobs for (c,) in off] != [c.logprobs for (c,) in plain]
    for (a,), (b,) in zip(off, on, strict=True):
        assert a.ids == b.ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-12)
    assert len(bags) == 9 * (1 if change["op"] == "set" else 3)  # a filled stream takes the dense way


@given(st.data())
def test_any_input_is_projected_as_it_is(data):
    model = ONE
    attention, k = model.layers[1].attention, 6
    rows = data.draw(st.integers(1, 4))
    values = st.lists(st.sampled_from([0.0, -0.0, 1e-300, 1.0, -2.5]), min_size=32 * rows, max_size=32 * rows)
    x = torch.tensor(data.draw(values), dtype=torch.float64).view(rows, 1, 32)
    x = x * (torch.arange(32) < data.draw(st.integers(0, 32)))
    expected = attention.project(x)
    with torch.no_grad(), sparse_inputs(model, "always", rows=rows, steps=1), pytest.MonkeyPatch.context() as patch:
        if int(x.count_nonzero()) > k * rows:
            patch.setattr(F, "embedding_bag", lambda *args, **kwargs: pytest.fail("more than k"))
        found = attention.project(x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


ONE = small(**GROUPED)


def test_what_is_not_finite_stays_so():
    model = small()
    attention = model.layers[1].attention
    with torch.no_grad(), sparse_inputs(model, "always", rows=2, steps=1):
        x = torch.zeros(2, 1, 32, dtype=torch.float64)
        x[1] = torch.nan
        assert [t.isnan().any(-1).tolist() for t in attention.project(x)] == [[[False], [True]]] * 3
    with torch.no_grad():
        attention.wv.weight[3, 5] = torch.inf  # 0 x inf is NaN
    with sparse_inputs(model, "always", rows=2, steps=1) as blocks:
        assert blocks == 2
    with pytest.raises(NonFiniteError):
        generate(model, None, PROMPTS, SamplingConfig(max_tokens=3), sparse_projections="always")


def test_projections_that_are_not_plain_stay():
    model = small()
    seen = []
    hook = model.layers[1].attention.wq.register_forward_hook(lambda *args: seen.append(1))
    model.layers[2].attention.wk = torch.nn.Sequential(model.layers[2].attention.wk)  # an adapter's wrapper
    with sparse_inputs(model, "always", rows=1, steps=1) as blocks:
        assert blocks == 1
        decoded(model, steps=2)
    assert len(seen) == 3
    hook.remove()
    model.layers[3].compile(backend="eager")
    with sparse_inputs(model, "always", rows=1, steps=1) as blocks:
        assert blocks == 1  # block 1, free of its hook
        assert type(model.layers[3].attention) is Attention


def test_the_rule_knows_sizes_only(monkeypatch):
    for name, value in (("LEAST_DIM", 32), ("LEAST_RATIO", 5), ("MOST_ROWS", 2), ("LEAST_STEPS", 4)):
        monkeypatch.setattr(module, name, value)

    def blocks(model, rows=2, steps=4):
        with sparse_inputs(model, "auto", rows=rows, steps=steps) as n:
            return n

    fits = small(dtype=torch.float32)
    assert (blocks(fits), blocks(fits, rows=3), blocks(fits, steps=3)) == (3, 0, 0)
    assert blocks(small()) == blocks(small(dtype=torch.bfloat16)) == 0
    assert blocks(small(TopKConfig(k=7), dtype=torch.float32)) == 0
    assert blocks(small(dim=24, n_heads=4, dtype=torch.float32, topk=TopKConfig(k=4))) == 0
    with sparse_inputs(fits, "never", rows=1, steps=9) as n:
        assert n == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions(dtype, bags):
    model = small(dtype=dtype)
    attention = model.layers[1].attention
    x = torch.zeros(2, 1, 32, dtype=dtype)
    x[:, :, ::7] = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        expected = attention.project(x)
        with sparse_inputs(model, "always", rows=2, steps=1):
            found = attention.project(x)
    assert bags == [10]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype is dtype
        torch.testing.assert_close(a, b, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_it_is_told_once_and_what_it_costs(caplog):
    caplog.set_level(logging.INFO)
    module._tell.cache_clear()
    model = small(dtype=torch.float32)
    for _ in range(2):
        generate(model, None, PROMPTS, SamplingConfig(max_tokens=2), sparse_projections="always")
    assert caplog.text.count("sparse_projections: 3 of 5 blocks") == 1
    caplog.clear()
    generate(model, None, PROMPTS, SamplingConfig(max_tokens=2))
    assert "sparse_projections" not in caplog.text
