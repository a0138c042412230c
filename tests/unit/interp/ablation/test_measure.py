"""Effects, attribution and direct effects against the equations in NumPy, in float64."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from tests.unit.interp.interventions import reference
from tests.unit.interp.tiny import MODEL, SPARSE, streams, write_checkpoint
from topklm import load_model
from topklm.errors import NonFiniteError
from topklm.interp.ablation import make_plan
from topklm.interp.ablation.attribution import attribute
from topklm.interp.ablation.direct import direct_effects
from topklm.interp.ablation.effects import Effects
from topklm.interp.ablation.losses import Reader
from topklm.interp.interventions import Intervention, bundle_means
from topklm.interp.neurons import Neuron
from topklm.model import build_model
from topklm.sparsity import TopKConfig, activation_tensors

EVERY = [Neuron(layer, index) for layer in range(MODEL.n_layers) for index in range(MODEL.dim)]


@pytest.fixture
def setting(config, loaded):
    """(plan, reader, weights)."""
    plan = make_plan(config())
    model = loaded[0]
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return plan, Reader(model, plan.corpus, 3), weights


def losses(logits, tokens):
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -log_p[np.arange(len(tokens) - 1), tokens[1:]]


@pytest.mark.parametrize("variant", ["zero", "refill", "mean"])
def test_an_effect_is_the_difference_of_two_hand_computed_losses(variant, setting):
    plan, reader, weights = setting
    neuron = plan.targets[1].neuron
    assert neuron == Neuron(1, 5)
    bundle = plan.bundle
    mean = float(bundle.layer(1).stats.sum[5] / bundle.n_tokens)
    edit = {"site": "post", "op": "mean" if variant == "mean" else "zero", "neurons": [5], "value": [mean],
            "refill": variant == "refill", "where": [True] * 8}  # fmt: skip

    def delta(start):
        tokens = plan.corpus.window(int(start))
        plain, changed = (
            losses(reference.logits(tokens[:-1], weights, MODEL, SPARSE, edits), tokens)
            for edits in ({}, {1: [{**edit, "where": [True] * 7}]})
        )
        return changed - plain

    effect = Effects(plan, reader, 3).measure(neuron, variant)
    np.testing.assert_allclose(effect.overall, [delta(start).sum() for start in plan.windows], atol=1e-9)
    stats = bundle.layer(1).stats.top
    positions = [p for p in stats.position[5].tolist() if p >= 0]
    starts = [max(w for w in bundle.windows.tolist() if w <= p) for p in positions]
    pairs = [(s, p - s) for s, p in zip(starts, positions, strict=True) if p - s < 7]
    tops = sorted({s for s, _ in pairs})
    np.testing.assert_allclose(effect.windows, [delta(s).sum() for s in tops], atol=1e-9)
    np.testing.assert_allclose(
        effect.at, [sum(delta(s)[t] for w, t in pairs if w == s) for s in tops], atol=1e-9
    )  # fmt: skip
    assert effect.contexts.tolist() == [sum(w == s for w, _ in pairs) for s in tops]
    assert np.abs(effect.windows).max() > 1e-3


def test_attribution_is_the_slope_of_the_loss_against_the_neuron_and_leaves_no_gradient(setting):
    plan, reader, _ = setting
    starts = plan.windows.tolist()
    found = attribute(reader, starts)
    assert all(p.grad is None and p.requires_grad for p in reader.model.parameters())
    n = len(starts) * 7
    assert found.n_tokens == n
    means = np.stack([bundle_means(plan.bundle, layer, range(MODEL.dim)).numpy() for layer in range(3)])
    for layer, index in [(0, 3), (0, 7), (1, 5), (1, 0), (2, 4), (2, 15)]:
        step = 1e-6
        scaled = [
            reader.losses(starts, [Intervention(layer=layer, neurons=[index], op="scale", value=1 + sign * step)]).sum()
            for sign in (1, -1)
        ]
        slope = (scaled[0] - scaled[1]) / (2 * step)  # of the loss against a factor: sum y dL/dy
        assert found.weighted[layer, index] == pytest.approx(slope, rel=1e-4, abs=1e-6)
        added = [
            reader.losses(starts, [Intervention(layer=layer, neurons=[index], op="add", value=sign * step)]).sum()
            for sign in (1, -1)
        ]
        slope = (added[0] - added[1]) / (2 * step)
        assert found.gradient[layer, index] == pytest.approx(slope, rel=1e-4, abs=1e-6)
        expected = (means[layer, index] * found.gradient - found.weighted)[layer, index] / n
        assert found.to(means)[layer, index] == pytest.approx(expected)


def test_attribution_is_a_slope_whatever_gradient_the_model_was_trained_with(setting, place, tmp_path):
    plan, reader, _ = setting
    starts = plan.windows.tolist()
    through = dataclasses.replace(SPARSE, gradient="straight_through")
    model, _, _ = load_model(write_checkpoint(tmp_path, place[0], through), dtype=torch.float64)
    found, plain = attribute(Reader(model, plan.corpus, 3), starts), attribute(reader, starts)
    np.testing.assert_allclose(found.weighted, plain.weighted, atol=1e-12)
    np.testing.assert_allclose(found.gradient, plain.gradient, atol=1e-12)
    tokens = torch.from_numpy(np.stack([plan.corpus.window(s) for s in starts]))
    model(tokens[:, :-1], tokens[:, 1:]).backward()  # it is trained on as before
    slopes = [block.feed_forward.w2.weight.grad.abs().sum(1).count_nonzero() for block in model.layers]
    assert slopes[0] == MODEL.dim


def test_attribution_leaves_no_gradient_in_thresholds(setting):
    plan, _, _ = setting
    model = build_model(MODEL, TopKConfig(activation="jumprelu", k=4, n_dense_tail=1, anneal_steps=10)).double()
    thresholds = activation_tensors(model)
    before = {name: tensor.requires_grad for name, tensor in thresholds.items()}
    attribute(Reader(model, plan.corpus, 3), plan.windows.tolist())
    assert thresholds
    assert all(tensor.grad is None for tensor in thresholds.values())
    assert {name: tensor.requires_grad for name, tensor in thresholds.items()} == before


def test_direct_effects_are_what_is_left_of_a_coordinate_in_the_last_stream(setting):
    plan, reader, weights = setting
    starts = plan.windows.tolist()
    found = direct_effects(reader, starts, EVERY)
    sums = {neuron: np.zeros(2 + 50) for neuron in EVERY}
    for start in starts:
        pairs = streams(plan.corpus.window(int(start)), weights, MODEL, SPARSE, 0.0)
        last = pairs[-1][1]
        for t in range(8):
            rms = np.sqrt((last[t] ** 2).mean() + MODEL.norm_eps)
            for neuron in EVERY:
                y = pairs[neuron.layer][1][t, neuron.index]
                if y <= 0:
                    continue
                # In the two TopK layers what is selected and positive stays as it is, all else becomes 0.
                lives = all(pairs[l][1][t, neuron.index] != 0 for l in range(neuron.layer + 1, 2))  # noqa: E741
                gain = weights["norm.weight"][neuron.index]
                logits = y * lives * gain / rms * weights["output.weight"][:, neuron.index]
                sums[neuron] += [1, lives, *(logits - logits.mean())]
    assert {bool(found[neuron].survival < 1) for neuron in EVERY if found[neuron].fired} == {True, False}
    for neuron, (fired, lives, *logits) in sums.items():
        mine = found[neuron]
        assert mine.fired == fired
        if fired:
            assert mine.survival == pytest.approx(lives / fired)
            np.testing.assert_allclose(mine.logits, np.array(logits) / fired, rtol=1e-5, atol=1e-6)


def test_while_annealing_what_is_not_selected_is_alpha_of_itself(setting, loaded):
    from topklm.sparsity import set_alpha

    plan, reader, weights = setting
    model = loaded[0]
    set_alpha(model, 0.25)
    try:
        found = direct_effects(reader, plan.windows.tolist(), EVERY[:16])
    finally:
        set_alpha(model, 0.0)
    sums = np.zeros((16, 2))
    for start in plan.windows:
        (_, y), (pre, _), _ = streams(plan.corpus.window(int(start)), weights, MODEL, SPARSE, 0.25)
        kept = np.zeros(pre.shape, bool)
        np.put_along_axis(kept, np.argsort(pre, 1)[:, -SPARSE.k :], True, 1)
        factor = np.where(kept & (pre > 0), 1.0, 0.25)
        sums += np.stack([(y > 0).sum(0), (factor * (y > 0)).sum(0)], 1)
    for i in range(16):
        assert found[EVERY[i]].survival == pytest.approx(sums[i, 1] / sums[i, 0])


def test_losses_that_are_not_finite_are_told(setting):
    plan, reader, _ = setting
    broken = copy.deepcopy(reader.model)
    broken.norm.weight.data[3] = float("nan")
    with pytest.raises(NonFiniteError, match="the model as it is"):
        Reader(broken, plan.corpus, 3).losses(plan.windows.tolist())
