"""TopK models and all gradients against the float64 NumPy reference; the gradients by its finite differences."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.unit.model import reference
from topklm.model import IGNORE, ModelConfig, build_model
from topklm.sparsity import TopKConfig, set_alpha

TINY = ModelConfig(dim=16, n_layers=3, n_heads=4, multiple_of=8, vocab_size=13, max_seqlen=8, loss_chunk=4)
VARIANTS = {
    "mha": TINY,
    "gqa, multiplier": dataclasses.replace(TINY, n_kv_heads=2, ffn_dim_multiplier=0.7),
    "tied, own head_dim": dataclasses.replace(TINY, weight_tying=True, head_dim=6, n_kv_heads=1),
    "ffn_dim": dataclasses.replace(TINY, ffn_dim=21, rope_theta=500.0),
}
SPARSE = TopKConfig(k=5, n_dense_tail=1)
MODES = [None, 0.0, 0.4]  # dense, TopK, annealing


def setting(config, alpha):
    """(model in float64, its weights as arrays, tokens [T], targets [T], documents [T])."""
    model = build_model(config, None if alpha is None else SPARSE).double()
    if alpha is not None:
        set_alpha(model, alpha)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):  # all ones would hide a norm that forgets its weight
                parameter += 0.1 * torch.arange(len(parameter)) % 0.7
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 13, (7,), generator=generator)
    targets = torch.randint(0, 13, (7,), generator=generator)
    targets[2] = IGNORE
    weights = {name: p.detach().numpy().copy() for name, p in model.state_dict().items()}
    return model, weights, tokens, targets, torch.tensor([0, 0, 0, 1, 1, 1, 1])


def options(alpha):
    # alpha is a 0-d fp32 tensor in the model: the reference takes the same number
    return {} if alpha is None else {"sparse": SPARSE, "alpha": float(torch.tensor(alpha))}


@pytest.mark.parametrize("alpha", MODES)
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits(config, alpha):
    model, weights, tokens, _, documents = setting(config, alpha)
    expected = reference.logits(tokens.numpy(), weights, config, documents.tolist(), **options(alpha))
    found = model(tokens[None], document_ids=documents[None])[0].detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-11)


@pytest.mark.parametrize("alpha", MODES)
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_gradient_of_every_parameter(config, alpha):
    """Along a random direction of each parameter, the gradient is the reference's central difference."""
    model, weights, tokens, targets, documents = setting(config, alpha)
    model(tokens[None], targets[None], document_ids=documents[None]).backward()
    generator = np.random.default_rng(0)

    def loss(name, step):
        moved = {**weights, name: weights[name] + step}
        out = reference.logits(tokens.numpy(), moved, config, documents.tolist(), **options(alpha))
        return reference.loss(out, targets.tolist())

    for name, parameter in model.named_parameters():
        direction = generator.standard_normal(parameter.shape)
        step = 1e-6 * direction  # no selection changes over it: margins are about 1e-2
        expected = (loss(name, step) - loss(name, -step)) / 2e-6
        found = (parameter.grad.numpy() * direction).sum()
        assert found == pytest.approx(expected, abs=1e-8, rel=1e-6), name
