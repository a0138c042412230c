"""Steered texts: adding nothing changes nothing, what writes a token writes it; losses are the unsteered model's."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.unit.evaluate.tiny_lm import TOKENIZER, brute_force, tiny_model
from topklm.generate import SamplingConfig, generate
from topklm.interp.neurons import Neuron
from topklm.interp.steering.concept import Concept
from topklm.interp.steering.config import DoseConfig
from topklm.interp.steering.dose import cells, measure, write_cells
from topklm.interp.steering.plan import Control, Plan, Target
from topklm.interp.steering.samples import SampleStore
from topklm.interp.steering.scale import Scale
from topklm.interp.steering.texts import Writer, text_losses
from topklm.report.steering import verdict

PAPER = SamplingConfig(max_tokens=12, temperature=0.7, top_k=50, top_p=0.9, n_samples=4, seed=3)
WRITTEN, NEURON = ord("x"), Neuron(1, 5)


def planted():
    """A model in which dimension 5 of the stream raises the logit of "x", and of nothing else."""
    model = tiny_model()
    with torch.no_grad():
        model.head_weight[:, NEURON.index] = 0
        model.head_weight[WRITTEN, NEURON.index] = 8
    return model


def writer(model, **changes):
    sampling = dataclasses.replace(PAPER, **changes)
    return Writer(model, TOKENIZER, "Once upon a time,", sampling, bos=True, batch_size=4)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_an_offset_of_zero_gives_the_unsteered_text(layer):
    model = tiny_model(dtype=torch.float32)
    made = writer(model).write(Neuron(layer, 3), 0.0)
    unsteered = writer(model).write(None, 0.0)
    assert [s.ids for s in made] == [s.ids for s in unsteered]
    assert [s.text for s in made] == [s.text for s in unsteered]
    plain = generate(model, TOKENIZER, ["Once upon a time,"], PAPER, batch_size=4)[0]
    assert [s.text for s in unsteered] == [completion.text for completion in plain]
    assert len({s.text for s in unsteered}) == 4


def test_texts_are_those_of_an_addition_before_the_cut():
    """Against a model whose block is changed by hand, and without a cache."""
    model = planted()
    made = writer(model, temperature=0, n_samples=1).write(NEURON, 6.0)[0]
    block = model.layers[NEURON.layer]
    seam = type(block).__mro__[1].residual_seam  # the dense block's

    def steered(stream, update):
        x = seam(block, stream, update)
        return block._topk(block, x + 6.0 * torch.nn.functional.one_hot(torch.tensor(NEURON.index), x.shape[-1]))

    block.__dict__["residual_seam"] = steered
    ids = TOKENIZER.encode("Once upon a time,", bos=True)
    expected = []
    with torch.no_grad():
        for _ in range(PAPER.max_tokens):
            expected.append(int(model(torch.tensor([ids + expected]))[0, -1].argmax()))
    assert made.ids == expected


def test_the_model_is_as_before_afterwards():
    model = planted()
    tokens = torch.arange(20)[None]
    before = model(tokens)
    writer(model).write(NEURON, 50.0)
    assert torch.equal(model(tokens), before)


def test_losses_are_those_of_one_text_at_a_time():
    model = tiny_model()
    prompt = TOKENIZER.encode("abc", bos=True)
    texts = [[5, 9, 200], [], [7], [1, 2, 3, 4, 5, 6], [9]]
    found = text_losses(model, prompt, texts, 2)
    for loss, ids in zip(found, texts, strict=True):
        expected = -brute_force(model, prompt + ids, len(ids))[0] if ids else 0.0
        assert loss == pytest.approx(expected, rel=1e-10)


def test_a_steered_text_is_scored_by_the_unsteered_model():
    model = planted()
    made = writer(model).write(NEURON, 20.0)
    prompt = TOKENIZER.encode("Once upon a time,", bos=True)
    for each in made:
        assert each.nll == pytest.approx(-brute_force(model, prompt + each.ids, len(each.ids))[0], rel=1e-10)


def test_an_eos_that_ends_a_text_is_not_among_its_tokens():
    model = tiny_model()
    with torch.no_grad():  # EOS always
        model.head_weight.zero_()
        model.head_weight[TOKENIZER.eos_id] = model.norm.weight * 0
        model.head_weight[: TOKENIZER.eos_id] -= 1e-3
    made = writer(model, temperature=0, n_samples=1).write(None, 0.0)[0]
    kept = made.ids + [TOKENIZER.eos_id] * (made.finish_reason == "eos")
    (completion,) = generate(
        model, TOKENIZER, ["Once upon a time,"], dataclasses.replace(PAPER, temperature=0, n_samples=1)
    )[0]
    assert kept == completion.ids


def plan_of(model, offsets, n_controls):
    controls = [
        Control(neuron=Neuron(NEURON.layer, i), density=0.25, offsets=offsets)
        for i in [i for i in range(32) if i != NEURON.index][:n_controls]
    ]
    scale = Scale(value=4.0, low=4.0, high=4.0, percentile=99.9, n_tokens=100)
    target = Target(
        neuron=NEURON, scale=scale, offsets=offsets, density=0.25, controls=controls,
        concept=Concept(tokens=np.array([WRITTEN]), n=1, corpus_rate=0.01),
    )  # fmt: skip
    bundle = SimpleNamespace(tokens=None, layer=lambda layer: SimpleNamespace(kind="topk"))
    return Plan(
        checkpoint=None, model=model.config, tokenizer=TOKENIZER, doses=[], targets=[target], bundle=bundle
    )  # fmt: skip


def test_a_neuron_that_writes_a_token_beats_its_controls_and_pays():
    model = planted()
    plan = plan_of(model, [2.5, 16.0], 19)
    config = DoseConfig(n_samples=4, bootstrap=200)
    store = SampleStore(None, {}, 4)
    write_cells(plan, writer(model, max_tokens=6), store)
    (curve,) = measure(plan, store, config)
    assert len(store) == len(list(cells(plan))) == 1 + 2 * 20
    low, high = curve.doses
    assert curve.rate.value < 0.1
    assert high.rate.value > 0.9
    assert curve.rate.value <= low.rate.value <= high.rate.value
    assert high.gain.value == pytest.approx(high.rate.value - curve.rate.value)
    assert high.gain.low > 0.5
    assert max(high.control_rates) < 0.3
    assert high.lead.value == pytest.approx(high.rate.value - np.mean(high.control_rates))
    assert (curve.p, high.p) == (0.05, 0.05)
    assert high.multiple == 4.0
    assert high.price.value == pytest.approx(high.perplexity.value / curve.perplexity.value)
    told = verdict(curve)
    assert told.startswith("1:5 (reads “x”) beats its controls at")
    assert "p = 0.05 over 2 doses, 19 controls" in told
    # The control in the steered neuron's place does not.
    other = dataclasses.replace(plan.targets[0], neuron=Neuron(1, 0), controls=[
        *plan.targets[0].controls[1:], dataclasses.replace(plan.targets[0].controls[0], neuron=NEURON)
    ])  # fmt: skip
    (curve,) = measure(dataclasses.replace(plan, targets=[other]), store, config)
    assert curve.p > 0.05
    assert "does not beat its controls" in verdict(curve)


def test_a_measurement_goes_on_where_it_was(tmp_path):
    model = planted()
    plan = plan_of(model, [4.0], 2)
    through = SampleStore(tmp_path / "through", {}, 4)
    write_cells(plan, writer(model), through)
    broken = SampleStore(tmp_path / "broken", {}, 4)

    class StoppedError(Exception):
        pass

    def stop(there):
        raise StoppedError

    for _ in range(2):  # once after the first cell; the second time at once, since that cell is there
        with pytest.raises(StoppedError):
            write_cells(plan, writer(model), broken, stop)
    told = []
    again = SampleStore(tmp_path / "broken", {}, 4)
    write_cells(plan, writer(model), again, told.append)
    assert told == [True, False, False, False]
    name = "samples.jsonl"
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "through" / name).read_bytes()
