"""A tiny TopK model in float64, and its weights for the reference."""

import torch

from topklm.model import ModelConfig, build_model
from topklm.sparsity import TopKConfig, set_alpha

V, D, K = 40, 12, 4
CONFIG = ModelConfig(dim=D, n_layers=4, n_heads=2, vocab_size=V, max_seqlen=64, multiple_of=8)
SPARSE = TopKConfig(k=K, n_dense_tail=1)


def tiny(alpha=0.0, topk=SPARSE):
    """Initial weights, made larger so that layers differ."""
    model = build_model(CONFIG, topk).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    if topk is not None:
        set_alpha(model, alpha)
    return model.eval()


def weights_of(model):
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def tokens(*shape, seed=0):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))
