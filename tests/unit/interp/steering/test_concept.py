"""The top-token set of a neuron, from a bundle, against its definition in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.unit.evaluate.tiny_lm import tiny_model
from tests.unit.interp.tiny import V, collected, write_checkpoint, write_data
from topklm.interp.neurons import Neuron
from topklm.interp.steering.concept import ConceptSettings, concepts_of, written_by


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("concept")
    return collected(write_checkpoint(root / "model", write_data(root / "data")), root / "bundle")


@pytest.mark.parametrize(("share", "cap", "min_count"), [(0.7, 100, 3), (0.0, 4, 5)])
def test_sets_are_those_of_the_definition(bundle, share, cap, min_count):
    neurons = [Neuron(layer, i) for layer in (0, 1, 2) for i in range(16)]
    special = [1, 7]
    found = concepts_of(bundle, neurons, ConceptSettings(share=share, cap=cap, min_count=min_count), special)
    for neuron in neurons:
        sums = bundle.layer(neuron.layer).table().dense(V)[:, neuron.index]
        types = [v for v in range(V) if bundle.counts[v] >= min_count and v not in special]
        means = {v: sums[v] / bundle.counts[v] for v in types}
        positive = sorted(mean for mean in means.values() if mean > 0)
        expected = []
        if positive:
            tau = share * positive[max(0, int(np.ceil(0.99 * len(positive))) - 1)]
            expected = sorted((v for v in types if means[v] > tau), key=lambda v: -means[v])
        assert found[neuron].tokens.tolist() == expected[:cap], neuron
        assert found[neuron].n == len(expected)
        rate = sum(int(bundle.counts[v]) for v in expected[:cap]) / bundle.n_tokens
        assert found[neuron].corpus_rate == pytest.approx(rate, rel=1e-12)


def test_what_is_written_has_the_largest_direct_effect(bundle):
    model = tiny_model()
    with torch.no_grad():
        model.norm.weight[3] = -2.0
    bundle = SimpleNamespace(counts=np.arange(258), n_tokens=1000)
    found = written_by(model, bundle, [Neuron(1, 3)], 4, min_count=50, special=[256, 257])
    concept = found[Neuron(1, 3)]
    effect = (model.head_weight.detach()[:, 3] * -2.0).tolist()
    assert concept.tokens.tolist() == sorted(range(50, 256), key=lambda v: -effect[v])[:4]
    assert concept.corpus_rate == sum(concept.tokens) / 1000
    # What a coordinate adds before the norm moves the logits that way: the norm's scale is positive.
    h = torch.zeros(32, dtype=torch.float64)
    h[3] = 5.0
    logits = model.norm(h) @ model.head_weight.T
    assert (logits[50:256].topk(4).indices + 50).tolist() == concept.tokens.tolist()


def test_hits_are_counted_with_repetitions(bundle):
    (concept,) = concepts_of(bundle, [Neuron(0, 3)], ConceptSettings(share=0.0, min_count=1)).values()
    inside, outside = int(concept.tokens[0]), next(v for v in range(V) if v not in concept.tokens)
    assert concept.hits([inside, outside, inside]) == 2
    assert concept.hits([]) == 0
