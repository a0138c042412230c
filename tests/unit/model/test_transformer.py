"""The transformer against a float64 reference of the published equations; names, causality, counts."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.unit.model import reference
from topklm.config import build
from topklm.errors import ConfigError
from topklm.model import IGNORE, ModelConfig, Transformer, build_model
from topklm.sparsity import TopKConfig

TINY = ModelConfig(dim=24, n_layers=2, n_heads=4, multiple_of=8, vocab_size=31, max_seqlen=16, loss_chunk=5)
VARIANTS = {
    "mha": TINY,
    "gqa": dataclasses.replace(TINY, n_kv_heads=2),
    "tied": dataclasses.replace(TINY, weight_tying=True),
    "own head_dim": dataclasses.replace(TINY, head_dim=10, n_kv_heads=1),
    "ffn_dim": dataclasses.replace(TINY, ffn_dim=20),
    "multiplier": dataclasses.replace(TINY, ffn_dim_multiplier=1.5),
}


def tokens(shape, seed=0):
    return torch.randint(0, TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("packed", [False, True])
def test_logits_and_loss_match_the_reference(config, packed):
    model = Transformer(config).double()
    weights = {name: p.detach().numpy() for name, p in model.state_dict().items()}
    x, y = tokens((3, 11)), tokens((3, 11), 1)
    y[1, 4:] = IGNORE
    documents = torch.tensor([[0] * 4 + [1] * 7, [0] * 11, [0, 1, 2] + [3] * 8]) if packed else None
    expected = np.stack(
        [
            reference.logits(x[b].numpy(), weights, config, None if documents is None else documents[b].tolist())
            for b in range(3)
        ]
    )
    np.testing.assert_allclose(model(x, document_ids=documents).detach().numpy(), expected, atol=1e-10)
    flat = reference.loss(expected.reshape(33, -1), y.flatten().tolist())
    assert model(x, y, document_ids=documents).item() == pytest.approx(flat, abs=1e-10)
    total = model(x, y, document_ids=documents, reduction="sum").item()
    assert total == pytest.approx(flat * (y != IGNORE).sum().item(), abs=1e-8)
    each = model(x, y, document_ids=documents, reduction="none")
    assert each.shape == y.shape
    assert each.sum().item() == pytest.approx(total, abs=1e-8)
    assert (each[y == IGNORE] == 0).all()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_names_and_counts_are_linguas(config):
    model = Transformer(config)
    names = set(model.state_dict())
    block = {"attention.wq", "attention.wk", "attention.wv", "attention.wo", "feed_forward.w1", "feed_forward.w2",
             "feed_forward.w3", "attention_norm", "ffn_norm"}  # fmt: skip
    expected = {f"layers.{i}.{name}.weight" for i in range(config.n_layers) for name in block}
    expected |= {"tok_embeddings.weight", "norm.weight"} | (set() if config.weight_tying else {"output.weight"})
    assert names == expected
    assert sum(p.numel() for p in model.parameters()) == config.n_params


def test_a_position_sees_nothing_of_later_ones():
    model = build_model(TINY, TopKConfig(k=6, n_dense_tail=1))
    x = tokens((1, 12))
    changed = x.clone()
    changed[0, 7:] = (changed[0, 7:] + 5) % TINY.vocab_size
    before, after = model(x), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7], after[:, 7])


def test_gradients_are_those_of_the_plain_loss():
    """The chunked loss makes its gradients itself: compare with autograd through full logits, in float64."""
    config = dataclasses.replace(TINY, n_kv_heads=2)
    x, y = tokens((2, 9)), tokens((2, 9), 1)
    y[0, :3] = IGNORE
    chunked, plain = Transformer(config).double(), Transformer(config).double()
    (chunked(x, y) * 3).backward()
    logits = plain(x)
    (torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()) * 3).backward()
    for (name, a), (_, b) in zip(chunked.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-10, rtol=1e-8, msg=name)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [("disabled", 1), ("global_depth", (2 * 4) ** 0.5), ("current_depth", None), ("dim_ratio", 512 / 4096)],
)
def test_initial_weights_follow_linguas_rules(factor, expected):
    config = ModelConfig(dim=512, n_layers=3, n_heads=4, vocab_size=2000, init_std_factor=factor)
    weights = Transformer(config).state_dict()
    cut_std = 0.9866  # std of a standard normal that is cut at 3
    for i in range(3):
        divisor = expected or (2 * (i + 1)) ** 0.5
        for name, std in {
            "attention.wq": 512**-0.5, "feed_forward.w3": 512**-0.5,
            "feed_forward.w2": config.ffn_width**-0.5 / divisor,
        }.items():  # fmt: skip
            w = weights[f"layers.{i}.{name}.weight"]
            assert w.std().item() == pytest.approx(std * cut_std, rel=0.02)
            assert w.abs().max() <= 3 * std * 1.0001
        assert weights[f"layers.{i}.attention.wo.weight"].abs().max() <= 3 * 512**-0.5 * 1.0001
    if factor == "global_depth":
        assert weights["layers.0.attention.wo.weight"].std().item() == pytest.approx(512**-0.5 / expected, rel=0.02)
    assert weights["output.weight"].std().item() == pytest.approx(512**-0.5 * cut_std, rel=0.02)
    assert (weights["norm.weight"] == 1).all()


def test_weights_are_a_function_of_seed_and_name():
    dense, sparse = Transformer(TINY), build_model(TINY, TopKConfig(k=4, n_dense_tail=1))
    for (name, a), (_, b) in zip(dense.state_dict().items(), sparse.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    other = Transformer(dataclasses.replace(TINY, seed=1))
    assert not torch.equal(dense.tok_embeddings.weight, other.tok_embeddings.weight)
    assert not torch.equal(dense.layers[0].attention.wq.weight, dense.layers[1].attention.wq.weight)


def test_bf16_computes_norms_and_rotations_in_fp32():
    model = Transformer(TINY)
    exact = model(tokens((2, 16)))
    rounded = model.bfloat16()(tokens((2, 16)))
    assert rounded.dtype == torch.bfloat16
    assert (exact - rounded.float()).abs().max() < 0.05


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"dim": 30, "n_heads": 4}, "n_heads"),
        ({"dim": 32}, "n_heads"),
        ({"dim": 32, "n_heads": 4, "n_kv_heads": 3}, "n_kv_heads"),
        ({"dim": 12, "n_heads": 4}, "head_dim"),
        ({"dim": 32, "n_heads": 4, "ffn_dim": 8, "ffn_dim_multiplier": 2.0}, "ffn_dim"),
        ({"dim": 0, "n_heads": 4}, "dim"),
        ({"dim": 32, "n_heads": 4, "vocab_size": 0}, "vocab_size"),
    ],
)
def test_impossible_sizes_are_named(wrong, key):
    with pytest.raises(ConfigError) as caught:
        build(ModelConfig, wrong)
    assert key in [problem.key for problem in caught.value.problems]


def test_lingua_repeats_a_tied_embedding_and_that_is_accepted():
    config = dataclasses.replace(TINY, weight_tying=True)
    model, other = Transformer(config), Transformer(dataclasses.replace(config, seed=3))
    state = {**model.state_dict(), "output.tied_module.weight": model.tok_embeddings.weight}
    other.load_state_dict(state)
    assert torch.equal(model(tokens((1, 5))), other(tokens((1, 5))))
