"""After an intervention the model is what it was, and what is wrong with one is told before anything is changed."""

import copy

import pytest
import torch

from tests.unit.interp.interventions.models import SPARSE, D, tiny, tokens
from topklm.errors import ConfigError
from topklm.interp.interventions import Intervention, intervene
from topklm.sparsity import set_alpha

STRONG = Intervention(layers="0:", neurons=[0, 1, 2], site="pre", op="add", value=20.0)


def anatomy(model):
    """Everything that an intervention could leave behind."""
    modules = [(name, type(m), sorted(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks),
                len(m._buffers)) for name, m in model.named_modules()]  # fmt: skip
    return modules, {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("how", ["leaves", "raises", "nested", "twice", "model raises"])
def test_the_model_is_bit_identical_afterwards(how):
    model, ids = tiny(), tokens(2, 6)
    (before, weights), plain = anatomy(model), model(ids)
    if how == "raises":
        with pytest.raises(ZeroDivisionError), intervene(model, [STRONG]):
            _ = 1 / (torch.equal(model(ids), plain) * 1)
    elif how == "model raises":
        with pytest.raises(IndexError), intervene(model, [STRONG]):
            model(ids + 1000)
    else:
        for _ in range(1 + (how == "twice")):
            with intervene(model, [STRONG]):
                outer = model(ids)
                assert not torch.equal(outer, plain)
                if how == "nested":
                    with intervene(model, [STRONG]):
                        assert not torch.equal(model(ids), outer)
                    assert torch.equal(model(ids), outer)
    after, weights_after = anatomy(model)
    assert after == before
    assert weights.keys() == weights_after.keys()
    assert all(torch.equal(weights[name], weights_after[name]) for name in weights)
    assert torch.equal(model(ids), plain)


def test_state_dict_alpha_and_copies_are_as_usual_inside():
    model, ids = tiny(), tokens(2, 6)
    keys = list(model.state_dict())
    with intervene(model, [STRONG]):
        assert list(model.state_dict()) == keys
        at_zero = model(ids)
        set_alpha(model, 0.5)
        assert not torch.equal(model(ids), at_zero)
        assert torch.equal(copy.deepcopy(model)(ids), model(ids))
    assert model.layers[0].__dict__["_topk"].value == 0.5


def test_all_problems_at_once_and_nothing_is_changed():
    model = tiny()
    before, _ = anatomy(model)
    wrong = [
        Intervention(layer=4, neurons=[D], site="mid", op="double", positions="some"),
        Intervention(neurons=[], op="add"),
        Intervention(layer=3, neurons=[1, 1], op="zero", refill=True, value=1.0),
        Intervention(layers=[0, 0], neurons=[0], op="set", value=float("nan")),
        Intervention(layer=0, layers=[1], neurons=[0], op="mean", value=torch.ones(2)),
        Intervention(layers="x:", neurons=[0], site="pre", op="zero", refill=True),
        Intervention(layer=0, neurons=[0], op="resample", value=2.0),
        Intervention(layer=0, neurons=[0], op="zero", positions=torch.ones(3, dtype=torch.bool)),
    ]
    with pytest.raises(ConfigError) as caught, intervene(model, wrong):
        pass
    keys = {problem.key for problem in caught.value.problems}
    assert keys == {
        "interventions[0].layer", "interventions[0].neurons", "interventions[0].site", "interventions[0].op",
        "interventions[0].positions", "interventions[1].layer", "interventions[1].neurons", "interventions[1].value",
        "interventions[2].neurons", "interventions[2].refill", "interventions[2].value", "interventions[3].layers",
        "interventions[3].value", "interventions[4].layer", "interventions[4].value", "interventions[5].layers",
        "interventions[5].refill", "interventions[6].value", "interventions[7].positions",
    }  # fmt: skip
    assert anatomy(model)[0] == before
    assert STRONG.problems(model) == []
    assert sorted(p.key for p in wrong[2].problems(tiny(topk=None))) == ["neurons", "refill", "value"]


def test_a_model_that_would_not_run_the_change_is_refused():
    model = tiny()
    model.layers[1].forward = model.layers[1].forward
    with pytest.raises(ConfigError, match="replaced forward"), intervene(model, [STRONG]):
        pass


def test_descriptions_name_everything():
    assert STRONG.describe() == "pre add 20: layers 0:, neurons 0, 1, 2, all positions"
    one = Intervention(layer=1, neurons=list(range(9)), op="zero", refill=True, positions="generated")
    assert one.describe() == ("post zero, with refill: layer 1, neurons 0, 1, 2, 3, 4, 5, ... (9), generated positions")
    assert SPARSE.k == 4
