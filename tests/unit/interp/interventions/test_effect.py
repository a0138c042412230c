"""What an intervention does to a model: exactly the definition, in float64, for every combination."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.interp.interventions import reference
from tests.unit.interp.interventions.models import CONFIG, SPARSE, D, K, tiny, tokens, weights_of
from topklm.interp.interventions import Intervention, intervene
from topklm.interp.statistics.tap import tap
from topklm.sparsity import TopKConfig

LENGTH = 7


def seen(model, ids, layer):
    """(pre, output) of a block, [B, T, D] each."""
    found = []
    with tap(model, [layer], lambda i, output, pre, activation: found.append((pre, output))) as forward:
        forward(ids)
    return found[0]


def chosen(model, ids, layer):
    """Which neurons a block selects, bool [B, T, D]."""
    found = []
    with tap(model, [layer], lambda i, output, pre, activation: found.append(activation.selected(pre))) as forward:
        forward(ids)
    return found[0]


def where_of(positions, length):
    if isinstance(positions, torch.Tensor):
        return positions[0].tolist()
    t = range(length)
    return {"all": [True] * length, "last": [i == length - 1 for i in t]}[positions]


edits = st.lists(
    st.builds(
        lambda layer, neurons, site, op, value, refill, positions: Intervention(
            layer=layer, neurons=sorted(neurons), site=site, op=op,
            value=None if op == "zero" else torch.tensor(value[: len(neurons)], dtype=torch.float64),
            refill=refill and site == "post" and op == "zero" and layer < 3, positions=positions,
        ),
        st.integers(0, 3), st.sets(st.integers(0, D - 1), min_size=1, max_size=3), st.sampled_from(["pre", "post"]),
        st.sampled_from(["add", "set", "scale", "zero", "mean"]),
        st.lists(st.floats(-3, 3, width=16), min_size=3, max_size=3), st.booleans(),
        st.one_of(st.sampled_from(["all", "last"]),
                  st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH).map(lambda x: torch.tensor([x]))),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@given(edits, st.sampled_from([0.0, 0.25, 1.0]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_list_of_interventions_is_the_hand_computed_forward_pass(edits, alpha, nested):
    model, ids = tiny(alpha), tokens(1, LENGTH, seed=3)
    by_layer = {}
    for one in edits:
        value = [0.0] * len(one.neurons) if one.value is None else one.value.tolist()
        edit = {"site": one.site, "op": one.op, "neurons": one.neurons, "value": value, "refill": one.refill,
                "where": where_of(one.positions, LENGTH)}  # fmt: skip
        by_layer.setdefault(one.layer, []).append(edit)
    expected = reference.logits(ids[0].numpy(), weights_of(model), CONFIG, SPARSE, by_layer, alpha)
    if nested:
        with intervene(model, edits[:1]), intervene(model, edits[1:]), torch.no_grad():
            got = model(ids)
    else:
        with intervene(model, edits), torch.no_grad():
            got = model(ids)
    np.testing.assert_allclose(got[0].numpy(), expected, rtol=1e-9, atol=1e-9)


@given(st.integers(0, D - 1), st.floats(-4, 4), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_adding_before_the_cut_evicts_one_where_the_neuron_enters_and_none_elsewhere(neuron, offset, seed):
    model, ids = tiny(), tokens(2, LENGTH, seed=seed)
    (plain, _), before = seen(model, ids, 1), chosen(model, ids, 1)
    with intervene(model, [Intervention(layer=1, neurons=[neuron], site="pre", op="add", value=offset)]):
        after = chosen(model, ids, 1)
    entered = after[..., neuron] & ~before[..., neuron]
    left = before[..., neuron] & ~after[..., neuron]
    others = torch.arange(D) != neuron
    evicted = (before & ~after)[..., others].sum(-1)
    admitted = (after & ~before)[..., others].sum(-1)
    assert torch.equal(evicted, entered.long())
    assert torch.equal(admitted, left.long())
    lowest = plain.masked_fill(~before, torch.inf).argmin(-1)  # who goes is the least of the selected
    assert torch.equal(after.gather(-1, lowest[..., None])[..., 0] | ~entered, torch.ones_like(entered) & ~entered)


def test_a_neuron_is_removed_with_and_without_refill():
    model, ids = tiny(), tokens(3, LENGTH)
    pre, output = seen(model, ids, 1)
    neuron = int(output.sum((0, 1)).argmax())
    active = output[..., neuron] > 0
    assert active.any()
    assert not active.all()
    removed = {}
    for refill in (False, True):
        one = Intervention(layer=1, neurons=[neuron], op="zero", refill=refill)
        with intervene(model, [one]):
            _, removed[refill] = seen(model, ids, 1)
        assert not removed[refill][..., neuron].any()
    others = torch.arange(D) != neuron
    assert torch.equal(removed[False][..., others], output[..., others])
    differ = (removed[True] != removed[False]).sum(-1)
    ranked = pre.sort(-1, descending=True).values
    next_is_positive = ranked[..., K] > 0
    assert torch.equal(differ, (active & next_is_positive).long())
    entered = (removed[True] - removed[False]).sum(-1)
    assert torch.equal(entered[active & next_is_positive], ranked[..., K][active & next_is_positive])


def test_more_can_be_removed_than_there_are_to_enter():
    model, ids = tiny(), tokens(1, 4)
    with intervene(model, [Intervention(layer=0, neurons=list(range(D - 2)), op="zero", refill=True)]):
        pre, output = seen(model, ids, 0)
    assert not output[..., : D - 2].any()
    assert torch.equal(output[..., D - 2 :], pre[..., D - 2 :].relu())


@pytest.mark.parametrize(("name", "options"), [("abstopk", {}), ("grouptopk", {"groups": 2}), ("normtopk", {})])
def test_whatever_a_fixed_number_is_selected_by_exactly_one_enters(name, options):
    topk = TopKConfig(activation=name, options=options, k=3, n_dense_tail=1, anneal_form="identity")  # no ReLU: not 0
    model, ids = tiny(topk=topk), tokens(3, LENGTH)
    _, output = seen(model, ids, 1)
    before = output != 0
    assert torch.equal(before, chosen(model, ids, 1))
    neuron = int(before.sum((0, 1)).argmax())
    with intervene(model, [Intervention(layer=1, neurons=[neuron], op="zero", refill=True)]):
        _, refilled = seen(model, ids, 1)
    after = refilled != 0
    left, entered = before & ~after, after & ~before
    assert torch.equal(left.sum(-1), before[..., neuron].long())
    assert torch.equal(entered.sum(-1), before[..., neuron].long())
    assert not after[..., neuron].any()
    assert torch.equal(refilled[before & after], output[before & after])


@pytest.mark.parametrize("name", ["batchtopk", "jumprelu", "stat_topk", "relu", "identity"])
def test_thresholds_leave_no_place_to_fill(name):
    form = {"identity": "identity"}.get(name, "blend")
    schedule = "none" if name == "identity" else "mask"
    model = tiny(topk=TopKConfig(activation=name, k=3, n_dense_tail=1, anneal_form=form, schedule=schedule))
    removed = Intervention(layer=1, neurons=[2], op="zero", refill=True)
    assert ["no place" in problem.message for problem in removed.problems(model)] == [True]
    with intervene(model, [Intervention(layer=1, neurons=[2], op="zero")]):
        assert not seen(model, tokens(2, LENGTH), 1)[1][..., 2].any()


def test_layers_are_one_several_or_all_from_one_on():
    model, ids = tiny(), tokens(1, 5)
    for layers, expected in (
        ([0, 2], [0, 2]),
        ("2:", [2, 3]),
        (range(1, 3), [1, 2]),
        (np.array([3, 1]).tolist(), [1, 3]),
    ):
        one = Intervention(layers=layers, neurons=list(np.array([3])), op="set", value=9.0)
        with intervene(model, [one]):
            assert [i for i in range(4) if bool((seen(model, ids, i)[1][..., 3] == 9.0).all())] == expected


def test_resample_takes_values_of_other_tokens():
    model, ids = tiny(topk=None), tokens(3, 6)
    _, plain = seen(model, ids, 1)
    with intervene(model, [Intervention(layer=1, neurons=[2, 5], op="resample", seed=4)]):
        _, mixed = seen(model, ids, 1)
    pairs = plain[..., [2, 5]].reshape(-1, 2)
    moved = mixed[..., [2, 5]].reshape(-1, 2)
    assert not torch.equal(pairs, moved)
    order = [int((pairs == pair).all(-1).nonzero()[0]) for pair in moved]  # both of one donor
    assert sorted(order) == list(range(18))
    mask = torch.zeros(1, 6, dtype=torch.bool)
    mask[0, :3] = True
    with intervene(model, [Intervention(layer=1, neurons=[2], op="resample", positions=mask)]):
        _, mixed = seen(model, ids, 1)
    assert torch.equal(mixed[:, 3:], plain[:, 3:])
    assert sorted(mixed[:, :3, 2].flatten().tolist()) == sorted(plain[:, :3, 2].flatten().tolist())
    values = torch.randn(3, 6, 1)
    with intervene(model, [Intervention(layer=1, neurons=[2], op="resample", value=values)]):
        assert torch.equal(seen(model, ids, 1)[1][..., 2], values[..., 0].double())


def test_gradients_are_those_of_finite_differences():
    model, ids = tiny(0.4), tokens(2, 5)
    value = torch.tensor([0.7, -0.3], dtype=torch.float64, requires_grad=True)

    def loss(value):
        steered = Intervention(layer=0, neurons=[1, 6], site="pre", op="add", value=value)
        removed = Intervention(layer=1, neurons=[4], op="zero", refill=True)
        with intervene(model, [steered, removed]):
            return model(ids, ids, reduction="sum")

    (slope,) = torch.autograd.grad(loss(value), value)
    for i in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[i] = 1e-6
        with torch.no_grad():
            measured = (loss(value + step) - loss(value - step)) / 2e-6
        assert float(slope[i]) == pytest.approx(float(measured), rel=1e-4)
    assert all(p.grad is None for p in model.parameters())
