"""The file that travels with exports: its activation is ours bit for bit, and its model is a model of transformers."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("transformers")

from transformers import AutoModel, AutoModelForCausalLM, StaticCache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from topklm.export.modeling_topklm import TopKActivation, TopKLlamaConfig, TopKLlamaForCausalLM, TopKLlamaModel, select
from topklm.sparsity import annealed_topk, topk
from topklm.sparsity.selection import select as our_select

FORMS = ("blend", "identity", "relu")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SECTION = {
    "activation": "topk", "k": 5, "n_dense_tail": 1, "anneal_form": "blend", "anneal_ratio": 0.5, "anneal_steps": 7,
    "alpha": 0.0,
}  # fmt: skip


def tiny(**changes) -> TopKLlamaForCausalLM:
    torch.manual_seed(1)
    topk = {**SECTION, **changes.pop("topk", {})}
    config = TopKLlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
        topk=topk, **changes,
    )  # fmt: skip
    return TopKLlamaForCausalLM(config).eval()


def tokens(rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(3, 50, (rows, length), generator=torch.Generator().manual_seed(0))


def ours(x: torch.Tensor, k: int, form: str, alpha: float) -> torch.Tensor:
    if torch.tensor(alpha, dtype=torch.float32) == 0:
        return topk(x, k, "identity" if form == "identity" else "relu")
    return annealed_topk(x, k, torch.tensor(alpha, dtype=torch.float32), form)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return np.array_equal(a.detach().view(torch.uint8).numpy(), b.detach().view(torch.uint8).numpy())


NUMBERS = st.one_of(
    st.floats(width=16),  # NaN, infinities and -0.0 among them; every dtype here but bf16 holds them exactly
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), -float("inf")]),
)


@settings(max_examples=150, deadline=None)
@given(
    values=hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 24)), elements=NUMBERS),
    share=st.floats(0, 1),
    form=st.sampled_from(FORMS),
    alpha=st.sampled_from([0.0, 0.1, 0.5, 1.0, 1e-46]),
    dtype=st.sampled_from(DTYPES),
)
def test_the_activation_is_ours_bit_for_bit(values, share, form, alpha, dtype) -> None:
    a = torch.from_numpy(values).to(dtype).requires_grad_()
    b = a.detach().clone().requires_grad_()
    k = max(1, round(share * a.shape[-1]))
    expected, got = ours(a, k, form, alpha), TopKActivation(k, form, alpha)(b)
    # A NaN times alpha may have another payload than a copied one.
    assert torch.equal(expected.isnan(), got.isnan())
    assert same_bits(expected.nan_to_num(7.0), got.nan_to_num(7.0))
    grad = torch.linspace(-1, 1, a.numel()).view_as(a).to(dtype)
    expected.backward(grad)
    got.backward(grad)
    assert torch.equal(a.grad, b.grad)


@given(
    values=hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 20)), elements=NUMBERS),
    k=st.integers(1, 20),
)
def test_the_selection_is_ours(values, k) -> None:
    x = torch.from_numpy(values)
    k = min(k, x.shape[-1])
    for dtype in DTYPES:
        mask = select(x.to(dtype), k)
        assert bool((mask.sum(-1) == k).all())
        expected = torch.zeros_like(mask).scatter(-1, our_select(x.to(dtype), k).long(), True)
        assert torch.equal(mask, expected)


def test_hidden_states_are_sparse_and_the_tail_is_dense() -> None:
    states = tiny()(tokens(), output_hidden_states=True).hidden_states
    l0 = [int((state != 0).sum(-1).max()) for state in states]
    assert len(l0) == 5
    assert all(n <= 5 for n in l0[1:4])
    assert l0[0] == l0[4] == 32
    half = tiny(topk={"alpha": 0.5})(tokens(), output_hidden_states=True).hidden_states
    assert int((half[1] != 0).sum(-1).min()) == 32


def test_hooks_on_the_activation_see_the_stream_before_and_after() -> None:
    model, seen = tiny(), []
    model.model.layers[1].activation.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    states = model(tokens(), output_hidden_states=True).hidden_states
    before, after = seen[0]
    assert torch.equal(after, states[2])
    assert torch.equal(after, before.relu() * select(before, 5))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_cache_gives_the_logits_of_a_full_pass(alpha: float) -> None:
    model = tiny(topk={"alpha": alpha}).double()
    x = tokens()
    full = model(x).logits
    static = StaticCache(config=model.config, max_cache_len=16)
    for cache in (None, static):  # None: a dynamic one
        parts = []
        for chunk in (x[:, :4], x[:, 4:5], x[:, 5:]):
            out = model(chunk, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        torch.testing.assert_close(torch.cat(parts, 1), full, rtol=0, atol=1e-5)


def test_left_padding_and_batches_change_nothing() -> None:
    model = tiny()
    long, short = tokens(1, 9), tokens(1, 5)
    padded = torch.cat([torch.full((1, 4), 2), short], 1)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "min_new_tokens": 6}
    batch = model.generate(torch.cat([long, padded]), attention_mask=mask, **options)
    assert batch[0].tolist() == model.generate(long, **options)[0].tolist()
    assert batch[1, 4:].tolist() == model.generate(short, **options)[0].tolist()
    no_cache = model.generate(short, use_cache=False, **options)
    fixed = model.generate(short, cache_implementation="static", **options)
    assert batch[1, 4:].tolist() == no_cache[0].tolist() == fixed[0].tolist()


@pytest.mark.parametrize("tied", [False, True])
def test_saving_and_loading(tied: bool, tmp_path) -> None:
    model = tiny(tie_word_embeddings=tied, topk={"alpha": 0.25})
    expected = model(tokens()).logits
    model.save_pretrained(tmp_path / "one")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"modeling_topklm.py", "config.json", "model.safetensors"} <= names
    # Twice: through the code in the directory, and saved by the class that came of it.
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "one", trust_remote_code=True)
    assert type(again) is not TopKLlamaForCausalLM
    again.save_pretrained(tmp_path / "two")
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}
    assert config["topk"] == {**SECTION, "alpha": 0.25}
    assert (tmp_path / "two" / "modeling_topklm.py").read_bytes() == (tmp_path / "one/modeling_topklm.py").read_bytes()
    twice, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "two", trust_remote_code=True, output_loading_info=True, device_map="cpu"
    )
    assert not any(info.values())
    assert torch.equal(twice(tokens()).logits, expected)
    base = AutoModel.from_pretrained(tmp_path / "two", trust_remote_code=True)
    assert type(base).__name__ == TopKLlamaModel.__name__
    hidden = base(tokens()).last_hidden_state
    assert torch.equal(hidden, model(tokens(), output_hidden_states=True).hidden_states[-1])
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "one", trust_remote_code=True, dtype=torch.bfloat16)
    assert half(tokens()).logits.dtype == torch.bfloat16
    assert half.model.layers[0].activation.alpha == 0.25
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "one", trust_remote_code=True, topk={**SECTION, "alpha": 1})
    assert not torch.equal(dense(tokens()).logits, expected)


def test_it_trains_with_and_without_gradient_checkpointing() -> None:
    model = tiny().train()
    x, gradients = tokens(), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        model(x, labels=x, use_cache=False).loss.backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
        assert gradient.abs().sum() > 0, name


def test_it_compiles_in_one_graph() -> None:
    model = tiny()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.equal(compiled(tokens(), use_cache=False).logits, model(tokens(), use_cache=False).logits)


def test_only_the_first_blocks_are_sparse_and_names_are_llamas() -> None:
    model = tiny(topk={"n_dense_tail": 3})
    kinds = [type(layer).__name__ for layer in model.model.layers]
    assert kinds == ["TopKLlamaDecoderLayer", *["LlamaDecoderLayer"] * 3]
    assert all(isinstance(layer, LlamaDecoderLayer) for layer in model.model.layers)
    assert not any("activation" in name for name in model.state_dict())
    assert "topk, k=5, form=blend, alpha=0" in repr(model)


@pytest.mark.parametrize(
    ("topk", "message"),
    [
        ({"activation": "jumpprelu"}, "jumpprelu.*it has: topk, abstopk"),
        ({"k": 33}, "k 33 is not in 1 ... 32"),
        ({"k": 0, "alpha": 2}, "k 0 .*alpha 2"),
        ({"n_dense_tail": 5}, "n_dense_tail 5"),
        ({"anneal_form": "cosine"}, "anneal_form 'cosine'"),
        ({"k": None}, "k None"),
    ],
)
def test_a_wrong_section_is_told(topk, message) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(topk=topk)


def test_a_missing_section_is_told() -> None:
    with pytest.raises(ValueError, match="needs a dictionary"):
        TopKLlamaForCausalLM(TopKLlamaConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1))
