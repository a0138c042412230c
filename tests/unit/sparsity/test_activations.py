"""Every activation against its definition in float64, and the rules that hold for all of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny_stack as tiny
import torch
from cases import CASES, DIM, EXACT, make, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters

from topklm.errors import ConfigError
from topklm.sparsity import TopKConfig, record_health, set_alpha, sparsify
from topklm.sparsity.registry import activation_names, build_activation

INF, NAN = float("inf"), float("nan")
# Some values twice, so that there are ties; all exact in every dtype.
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 3.0, INF, -INF, NAN])
NUMBERS = st.one_of(VALUES, st.floats(-4, 4, width=16))
ROWS = st.lists(st.lists(NUMBERS, min_size=DIM, max_size=DIM), min_size=1, max_size=3)


def test_there_is_a_case_for_every_activation_and_a_place_in_the_docs() -> None:
    assert sorted(CASES) == activation_names()
    page = (Path(__file__).parents[3] / "docs" / "activations.md").read_text()
    for name in CASES:
        assert f"`{name}`" in page
        for option in dataclasses.fields(build_activation(CASES[name], DIM).Options):
            assert f"`{option.name}`" in page, (name, option.name)


def formula(x: Tensor, mask: Tensor, alpha: float, form: str) -> Tensor:
    """Eq. 3 in float64, unselected entries by `where` so that an infinite one is 0 at alpha = 0."""
    weak = x * alpha if alpha else torch.zeros_like(x)
    if form == "blend":
        return torch.where(mask & (x > 0), x, weak)
    out = torch.where(mask, x, weak)
    return out if form == "identity" else out.relu()


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, deadline=None)
@given(
    rows=ROWS, dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), alpha=st.sampled_from([0, 0.5])
)
def test_against_the_definition(name: str, rows: list[list[float]], dtype: torch.dtype, alpha: float) -> None:
    cfg, x = CASES[name], torch.tensor(rows, dtype=torch.float64).to(dtype)
    activation = make(cfg)
    mask = torch.zeros(x.shape, dtype=torch.bool)
    for i, row in enumerate(x.tolist()):
        mask[i, sorted(reference(cfg, activation, row))] = True
    selected = activation.selected(x)
    if name == "stat_topk":  # the threshold is a sum: where an entry lies on it, rounding decides
        wide = x.double()
        threshold = wide.mean(-1, keepdim=True) + wide.std(-1, correction=0, keepdim=True) * activation.z
        near = (wide - threshold).abs() < 1e-5
        assert ((selected == mask) | near).all()
        mask = selected
    assert torch.equal(selected, mask)
    out = activation(x, torch.tensor(alpha) if alpha else None).double()
    expected = formula(x.double(), mask, alpha, cfg.anneal_form)
    known = ~x.isnan()
    torch.testing.assert_close(out[known], expected[known], rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=0)
    assert out.isnan().any(-1)[x.isnan().any(-1)].all()  # NaN in, NaN out
    if not alpha:
        assert (out[~mask] == 0).all()  # exact zeros, of infinite entries too
    if name in EXACT:
        assert (selected.sum(-1) == EXACT[name]).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("schedule", ["mask", "k"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_token_knows_of_no_other(name: str, schedule: str, data: st.DataObject) -> None:
    """Whatever stands at later positions and in other rows: the same bits."""
    cfg = CASES[name]
    if schedule == "k":
        if name not in ("topk", "abstopk", "grouptopk", "normtopk"):
            return
        cfg = dataclasses.replace(cfg, schedule="k")
    activation = make(cfg)
    alpha = data.draw(st.sampled_from([0.0, 0.3]))
    activation.at(alpha)
    rows = [torch.tensor(data.draw(ROWS))[0] for _ in range(4)]
    x = torch.stack(rows).view(2, 2, DIM)
    arguments = torch.tensor(alpha) if alpha else None
    together = activation(x, arguments)
    for i in range(4):
        alone = activation(rows[i].view(1, 1, DIM), arguments)
        assert torch.equal(alone.view(-1).view(torch.int32), together.view(4, DIM)[i].view(torch.int32))


@pytest.mark.parametrize("name", CASES)
def test_a_model_in_eval_mode_is_causal_and_knows_of_no_other_row(name: str) -> None:
    model = tiny.make_stack(None)
    model = sparsify(model, CASES[name]).eval() if name != "normtopk" else _with_norms(model)
    tokens = tiny.make_batch(0, 3)[:, :-1]
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 11) % tiny.VOCAB
    changed[1] = (changed[1] + 5) % tiny.VOCAB
    for alpha in (0.0, 0.5):
        set_alpha(model, alpha)
        a, b = model(tokens), model(changed)
        assert torch.equal(a[[0, 2], :7], b[[0, 2], :7])
        assert not torch.equal(a, b)


def _with_norms(model: tiny.Stack) -> tiny.Stack:
    """`normtopk` reads matrices by their names, which this stack does not have."""
    from topklm.sparsity import patch

    kept, patch.readers_of = patch.readers_of, lambda model: iter(())
    try:
        return sparsify(model, CASES["normtopk"]).eval()
    finally:
        patch.readers_of = kept


@pytest.mark.parametrize("name", [name for name in CASES if name != "identity"])
def test_alpha_1_is_exactly_the_dense_block(name: str) -> None:
    activation = make(CASES[name])
    x = torch.randn(4, DIM)
    x[0, :4] = torch.tensor([INF, -INF, 0.0, -0.0])
    activation.at(1.0)
    assert torch.equal(activation(x, torch.tensor(1.0)), x)


@pytest.mark.parametrize("name", ["topk", "abstopk", "grouptopk", "normtopk"])
def test_k_falls_from_all_entries(name: str) -> None:
    cfg = dataclasses.replace(CASES[name], schedule="k", anneal_form="identity")
    activation = make(cfg)
    x = torch.randn(5, DIM)
    first, groups = (8, 4) if name == "grouptopk" else (DIM, 1)
    for alpha in (1.0, 0.75, 0.1, 0.0):
        activation.at(alpha)
        out = activation(x, torch.tensor(alpha) if alpha else None)
        kept = (cfg.k + round(alpha * (first - cfg.k))) * groups
        assert ((out != 0).sum(-1) == kept).all()
        assert torch.equal(activation.selected_now(x), out != 0)
        assert torch.equal(activation.active(x), (out != 0) & ((x > 0) | (name == "abstopk")))  # what health counts
        assert torch.equal(activation.selected(x).sum(-1), torch.full((5,), cfg.k * groups))
    activation.at(1.0)
    assert torch.equal(activation(x, torch.tensor(1.0)), x)
    if name == "topk":
        assert activation.margin(x).isnan().all()  # nothing is left out
        activation.at(0.5)
        ordered = x.sort(descending=True).values
        assert torch.equal(activation.margin(x), ordered[:, 18] - ordered[:, 19])


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("jumprelu", "identity")])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_gradients_by_either_rule(name: str, alpha: float) -> None:
    x = torch.randn(3, DIM, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    weight = torch.randn(3, DIM).double()
    arguments = torch.tensor(alpha) if alpha else None
    activation = make(CASES[name])
    (activation(x, arguments) * weight).sum().backward()
    mask = activation.selected(x)
    passed = mask if CASES[name].anneal_form == "identity" else mask & (x > 0)
    torch.testing.assert_close(x.grad, torch.where(passed, weight, weight * alpha))
    x.grad = None
    through = make(dataclasses.replace(CASES[name], gradient="straight_through"))
    value = through(x, arguments)
    assert torch.equal(value, activation(x, arguments))
    (value * weight).sum().backward()
    assert torch.equal(x.grad, weight)


def test_k_per_layer_and_one_graph_whatever_their_number() -> None:
    cfg = TopKConfig(k_per_layer=[3, 5, 8], n_dense_tail=2)
    model, plain = tiny.make_stack(cfg), tiny.make_stack(cfg)
    tokens = tiny.make_batch(0)
    torch._dynamo.reset()
    counters.clear()
    tiny.compile_blocks(model, "forward", backend="aot_eager", fullgraph=True)
    for alpha in (1.0, 0.2, 0.0):
        for each in (model, plain):
            set_alpha(each, alpha)
        loss, expected = tiny.loss_of(model, tokens), tiny.loss_of(plain, tokens)
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
        loss.backward()
    assert counters["stats"]["unique_graphs"] == 3  # annealing, pure, and the dense tail: not one for each k
    torch._dynamo.reset()
    with record_health(plain) as health:
        plain(tokens[:, :-1])
    found = health.summary()
    assert [found[f"topk/layer_0{i}/l0_max"] for i in range(3)] == [3, 5, 8]
    assert "k=8" in plain.layers[2].extra_repr()


@pytest.mark.parametrize(("name", "schedule"), [("topk", "k"), ("jumprelu", "mask")])
def test_compiled_and_recomputed_blocks_train_alike_in_two_graphs(name: str, schedule: str) -> None:
    cfg = dataclasses.replace(CASES[name], n_dense_tail=2, schedule=schedule)
    losses = []
    for compiled in (False, True):
        model = tiny.make_stack(cfg)
        if compiled:
            torch._dynamo.reset()
            counters.clear()
            tiny.checkpoint_blocks(model, "full")
            tiny.compile_blocks(model, "forward", backend="aot_eager", fullgraph=True)
        losses.append(tiny.train_steps(model, 5, 3))
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 3
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "feature_choice"}, "later tokens .* topk or batchtopk"),
        ({"activation": "mutual-choice"}, "batchtopk here, whose threshold is causal"),
        ({"activation": "gradient_topk"}, "knows the next token"),
        ({"activation": "jumprelo"}, "did you mean jumprelu"),
        ({"activation": "abstopk"}, "anneal_form: 'blend' has no meaning for abstopk; take anneal_form=identity"),
        ({"activation": "jumprelu", "schedule": "k"}, "take schedule=mask or none"),
        ({"activation": "jumprelu", "gradient": "straight_through"}, "take gradient=plain"),
        ({"activation": "batchtopk", "options": {"momentm": 0.5}}, "options.momentm: is no option .* momentum"),
        ({"activation": "batchtopk", "options": {"momentum": "much"}}, "options.momentum: 'much' is not a number"),
        ({"activation": "batchtopk", "options": {"selection": "all"}}, "'all' is not threshold or batch"),
        ({"activation": "batchtopk", "options": {"momentum": 1.5}}, "options.momentum: 1.5 must be at least 0"),
        ({"activation": "grouptopk", "k": 2, "options": {"groups": 5}}, "options.groups: 5 does not divide the 32"),
        ({"activation": "grouptopk", "k": 9, "options": {"groups": 4}}, "more than the 8 entries of a group"),
        ({"activation": "stat_topk", "k_per_layer": [1, 1, 1], "options": {"z": 1.0}}, "no effect beside options.z"),
        ({"k_per_layer": [3, 4]}, "has 2 numbers for the 3 sparse blocks"),
        ({"k_per_layer": [3, 4, 33]}, "k_per_layer: 33 is more than the 32"),
        ({"k_per_layer": [3, 0, 3]}, "every k must be at least 1"),
        ({"activation": "relu", "k_per_layer": [3, 3, 3]}, "relu has no k"),
        ({"schedule": "none", "anneal_steps": 5}, "contradicts schedule none"),
        ({"options": {"groups": 4}}, "it has none"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny.make_stack(TopKConfig(**{"k": 6, "n_dense_tail": 2, **settings}))


def test_what_has_no_k_does_not_mind_a_large_one() -> None:
    tiny.make_stack(TopKConfig(activation="relu", k=64, n_dense_tail=2))


def test_options_and_schedule_are_settled_with_the_run() -> None:
    cfg = TopKConfig(activation="jumprelu", options={"lr": 1}, schedule="none").resolve(100)
    assert cfg.anneal_steps == 0
    assert cfg.options["lr"] == 1.0
    assert cfg.options["bandwidth"] == 0.1
    assert cfg.resolve(1000) == cfg
