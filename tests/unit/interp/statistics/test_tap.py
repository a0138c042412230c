"""Taps see what the blocks compute, stop where nothing more is wanted, and leave no trace."""

import pytest
import torch

from topklm.errors import ConfigError
from topklm.interp import differences, selected_masks
from topklm.interp.statistics.reading import ReadTopK, read_layer
from topklm.interp.statistics.tap import tap
from topklm.model import ModelConfig, build_model
from topklm.sparsity import TopKConfig, record_health, set_alpha, topk

TOKENS = torch.arange(24).view(3, 8) % 20


@pytest.fixture
def model():
    config = ModelConfig(dim=16, n_layers=4, n_heads=2, vocab_size=20, max_seqlen=8)
    return build_model(config, TopKConfig(k=4, n_dense_tail=1)).eval()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_outputs_and_pre_activations_of_the_blocks(model, alpha):
    set_alpha(model, alpha)
    seen = {}
    with tap(model, [0, 1, 2, 3], lambda layer, *what: seen.update({layer: what})) as forward:
        forward(TOKENS)
    assert list(seen) == [0, 1, 2, 3]
    for layer, (output, pre, activation) in seen.items():
        assert output.shape == (3, 8, 16)
        assert not output.requires_grad
        if layer == 3:
            assert pre is None
            assert activation is None
        else:
            assert torch.equal(output, activation(pre, torch.tensor(alpha) if alpha else None))
    assert torch.equal(torch.nn.functional.linear(model.norm(seen[3][0]), model.head_weight), model(TOKENS))


def test_nothing_after_the_last_layer_of_interest_is_computed(model):
    ran = []
    for i, block in enumerate(model.layers):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    with tap(model, [1, 0], lambda *_: None) as forward:
        forward(TOKENS)
    assert ran == [0, 1]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before(model, fails):
    before = model(TOKENS)
    hooks = [len(block._forward_hooks) for block in model.layers]

    def see(layer, *_):
        if fails and layer == 2:
            raise ValueError

    try:
        with tap(model, [0, 2], see) as forward:
            forward(TOKENS)
    except ValueError:
        assert fails
    assert [len(block._forward_hooks) for block in model.layers] == hooks
    assert torch.equal(model(TOKENS), before)
    with record_health(model) as health:  # nobody else is recording
        model(TOKENS)
    assert health.summary()["topk/l0_mean"] <= 4


def test_two_do_not_record_at_once(model):
    with record_health(model), pytest.raises(ConfigError, match="recorded already"), tap(model, [0], print):
        pass
    with tap(model, [0], print), pytest.raises(ConfigError, match="recorded already"), record_health(model):
        pass


def test_a_dense_model_read_through_a_cut_is_not_changed_by_it(model):
    dense = build_model(model.config, None)
    x = torch.randn(2, 8, 16)
    before = x.clone()
    for relu in (True, False):
        reading = read_layer(x, None, None, alpha=None, cut=ReadTopK(k=3, relu=relu))
        found = torch.zeros(16, 16)
        found[reading.values.token, reading.values.neuron] = reading.values.values
        assert torch.equal(found.view_as(x), topk(x, 3, "relu" if relu else "identity"))
        assert torch.equal(reading.fired, found > 0)
    assert torch.equal(x, before)
    assert list(ReadTopK(k=0, n_dense_tail=-1).problems())
    assert torch.equal(dense(TOKENS), dense(TOKENS))


def test_the_share_of_differing_selections(model):
    """Batch by batch the same here; after a shift that flips known entries, exactly their share."""
    a = selected_masks(model, TOKENS)
    assert len(a) == 3
    assert all(mask.shape == (3, 8, 16) and (mask.sum(-1) == 4).all() for mask in a)
    same = differences(a, selected_masks(model, TOKENS, batch_size=1))
    assert same.tokens == 3 * 24
    assert same.tokens_differ <= 1 / 36  # rounding may flip a tie, no more
    b = [mask.clone() for mask in a]
    b[1][0, 0] = ~b[1][0, 0] & (torch.arange(16) < 8)  # one token of 72 loses all of its 4 entries
    found = differences(a, b)
    assert found.tokens_differ == pytest.approx(1 / 72)
    assert found.entries_differ == pytest.approx(4 / (72 * 4))
    other = build_model(model.config, TopKConfig(k=4, n_dense_tail=1)).bfloat16()
    rounded = differences(a, selected_masks(other, TOKENS))
    assert 0 < rounded.entries_differ < 0.2
    assert differences([], []).tokens_differ == 0


def test_a_dense_model_selects_nothing(model):
    assert selected_masks(build_model(model.config, None), TOKENS) == []
