"""Every activation under the statistics' reading and under interventions: what is counted is what the model does."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from topklm.interp.interventions import Intervention, intervene
from topklm.interp.statistics.layer_plan import plan_layers
from topklm.interp.statistics.memory import most_kept
from topklm.interp.statistics.reading import Entries, ReadTopK, read_layer
from topklm.interp.statistics.selections import selected_masks
from topklm.interp.statistics.tap import tap
from topklm.model import ModelConfig, build_model
from topklm.sparsity import TopKConfig, activation_tensors, set_alpha

SIZES = ModelConfig(dim=24, n_layers=3, n_heads=4, multiple_of=8, vocab_size=31, max_seqlen=32)
CASES = {
    "abstopk": {"anneal_form": "identity"},
    "grouptopk": {"k": 2, "options": {"groups": 4}},
    "normtopk": {},
    "stat_topk": {},
    "batchtopk": {},
    "jumprelu": {},
    "relu": {},
    "identity": {"anneal_form": "identity", "schedule": "none"},
    "topk": {"k_per_layer": [3, 8]},
}
TOKENS = torch.randint(0, 31, (3, 9), generator=torch.Generator().manual_seed(0))


def build(name: str):
    model = build_model(SIZES, TopKConfig(**{"k": 5, "n_dense_tail": 1, "activation": name, **CASES[name]})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
        for tensor in activation_tensors(model).values():
            tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) * 0.5)
    return model


def seen(model):
    found = {}
    with tap(model, [0, 1, 2], lambda layer, *rest: found.update({layer: rest})) as forward:
        forward(TOKENS)
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_what_is_read_is_what_the_block_does(name: str, alpha: float) -> None:
    if name == "identity" and alpha:
        return
    model = build(name)
    set_alpha(model, alpha)
    plans = plan_layers(
        3, TopKConfig(**{"k": 5, "n_dense_tail": 1, "activation": name, **CASES[name]}), alpha, "post", None
    )
    masks = selected_masks(model, TOKENS)
    for layer, (output, pre, activation) in seen(model).items():
        reading = read_layer(output, pre, activation, alpha=alpha)
        values = reading.values
        if isinstance(values, Entries):
            whole = torch.zeros(27, 24)
            whole[values.token, values.neuron] = values.values
            values = whole
        assert torch.equal(values, output.flatten(0, 1).detach())
        assert plans[layer].signed or (values >= 0).all()
        if layer == 2:
            assert reading.selection is None
            continue
        mask = activation.selected(pre).flatten(0, 1)
        assert torch.equal(masks[layer].flatten(0, 1), mask)
        assert torch.equal(reading.fired, mask & (pre.flatten(0, 1) > 0))
        assert torch.equal(reading.selection.others == -torch.inf, mask)
        if not alpha:
            assert (values[~mask] == 0).all()
    assert [plan.kind for plan in plans] == (["topk"] * 2 if not alpha and name != "identity" else ["dense"] * 2) + [
        "dense"
    ]


@pytest.mark.parametrize("name", CASES)
def test_no_token_has_more_entries_than_the_disk_is_reckoned_for(name: str) -> None:
    """batchtopk, jumprelu, stat_topk and relu keep more than k of some tokens, grouptopk k of each group."""
    topk = TopKConfig(**{"k": 5, "n_dense_tail": 1, "activation": name, **CASES[name]})
    plans = plan_layers(3, topk, 0.0, "post", None)
    found = seen(build(name))
    for layer in range(2):
        most = int((found[layer][0] != 0).sum(-1).max())
        assert most <= most_kept(plans[layer], dataclasses.asdict(topk.resolve(100)), 24) <= 24
    assert most_kept(plan_layers(3, None, None, "post", ReadTopK(k=2))[0], {}, 24) == 2


@pytest.mark.parametrize("name", CASES)
def test_interventions_act_and_leave_nothing(name: str) -> None:
    model = build(name)
    with torch.no_grad():
        before, outputs = model(TOKENS), seen(model)
        neuron = int((outputs[0][0] != 0).flatten(0, 1).sum(0).argmax())
        with intervene(model, [Intervention(layer=0, neurons=[neuron], op="zero")]):
            changed, after = model(TOKENS), seen(model)
        assert (after[0][0][..., neuron] == 0).all()
        others = [i for i in range(24) if i != neuron]
        assert torch.equal(after[0][0][..., others], outputs[0][0][..., others])
        assert not torch.equal(changed, before)
        with intervene(model, [Intervention(layer=1, neurons=[neuron], site="pre", op="add", value=1e4)]):
            assert (seen(model)[1][0][..., neuron] > 1e3).all()  # so large that every rule keeps it
        assert torch.equal(model(TOKENS), before)
