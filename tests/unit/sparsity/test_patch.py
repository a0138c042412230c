"""`sparsify` in place: what it leaves alone, what survives copies and casts, and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import tiny_stack as tiny
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from topklm.errors import ConfigError
from topklm.sparsity import TopKConfig, get_alpha, set_alpha, sparsify, topk

CFG = TopKConfig(k=6, n_dense_tail=2)
TOKENS = tiny.make_batch(0)[:, :-1]
BLOCKS = [tiny.SeamBlock, tiny.PlainBlock, tiny.TupleBlock]


def streams(model: tiny.Stack) -> list[torch.Tensor]:
    """The output of each block, [B, T, D]."""
    out, x = [], model.tok_embeddings(TOKENS)
    for block in model.layers:
        x = block(x)
        x = x[0] if isinstance(x, tuple) else x
        out.append(x)
    return out


@pytest.mark.parametrize("block", BLOCKS)
def test_first_blocks_are_sparse_and_the_tail_is_dense(block: Callable[[int], nn.Module]) -> None:
    model = tiny.make_stack(CFG, block)
    for i, x in enumerate(streams(model)):
        l0 = (x != 0).sum(-1)
        assert bool((l0 <= 6).all()) == (i < 3), i
        assert (x >= 0).all() or i >= 3


@pytest.mark.parametrize("block", BLOCKS)
def test_it_is_the_activation_of_the_dense_output(block: Callable[[int], nn.Module]) -> None:
    dense, sparse = tiny.make_stack(None, block), tiny.make_stack(CFG, block)
    x = dense.tok_embeddings(TOKENS)
    expected, out = dense.layers[0](x), sparse.layers[0](x)
    if block is tiny.TupleBlock:
        expected, out = expected[0], out[0]
    assert torch.equal(out, topk(expected, 6))
    set_alpha(sparse, 1.0)
    assert torch.equal(sparse(TOKENS), dense(TOKENS))


def test_tuple_keeps_its_other_elements() -> None:
    x = torch.randn(2, 5, tiny.DIM)
    dense, sparse = (tiny.make_stack(cfg, tiny.TupleBlock).layers[0] for cfg in (None, CFG))
    assert len(sparse(hidden_states=x)) == 1
    assert torch.equal(sparse(x, use_cache=True)[1], dense(x, use_cache=True)[1])


def test_names_and_weights_are_untouched() -> None:
    dense, sparse = tiny.make_stack(None), tiny.make_stack(CFG)
    assert list(sparse.state_dict()) == list(dense.state_dict())
    assert [name for name, _ in sparse.named_parameters()] == [name for name, _ in dense.named_parameters()]
    assert [name for name, _ in sparse.named_modules()] == [name for name, _ in dense.named_modules()]
    assert not list(sparse.buffers())
    sparse.load_state_dict(dense.state_dict())
    dense.load_state_dict(sparse.state_dict())


@pytest.mark.parametrize("cfg", [None, TopKConfig(k=6, n_dense_tail=5)])
def test_dense_bit_for_bit(cfg: TopKConfig | None) -> None:
    plain, model = tiny.make_stack(None), tiny.make_stack(cfg)
    assert torch.equal(model(TOKENS), plain(TOKENS))
    assert all(type(block) is tiny.SeamBlock for block in model.layers)
    assert get_alpha(model) is None
    with pytest.raises(ConfigError, match="no sparse blocks"):
        set_alpha(model, 0.5)


def test_one_class_per_block_class() -> None:
    a, b = tiny.make_stack(CFG), tiny.make_stack(TopKConfig(k=3, n_dense_tail=0))
    classes = {type(block) for block in [*a.layers[:3], *b.layers]}
    assert len(classes) == 1
    assert classes.pop().__name__ == "TopKSeamBlock"
    assert isinstance(a.layers[0], tiny.SeamBlock)
    assert "activation=topk, k=6" in repr(a)
    assert type(tiny.make_stack(CFG, tiny.PlainBlock).layers[0]).__name__ == "TopKPlainBlock"


def test_model_of_a_hugging_face_shape_and_given_blocks() -> None:
    outer = nn.Module()
    outer.model = tiny.make_stack(None)
    assert sparsify(outer, CFG) is outer
    assert get_alpha(outer) == 0
    assert type(outer.model.layers[0]) is not tiny.SeamBlock
    for how in ("decoder.stack", "list"):
        other = nn.Module()
        other.decoder = nn.Module()
        other.decoder.stack = tiny.make_stack(None).layers
        with pytest.raises(ConfigError, match=r"no nn.ModuleList of blocks at model.layers or model.model.layers"):
            sparsify(other, CFG)
        with pytest.raises(ConfigError, match=r"at model.decoder.nothing"):
            sparsify(other, CFG, blocks="decoder.nothing")
        sparsify(other, CFG, blocks=how if how != "list" else other.decoder.stack)
        assert type(other.decoder.stack[0]).__name__ == "TopKSeamBlock"


def copies(model: nn.Module) -> dict[str, nn.Module]:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "save": torch.load(file, weights_only=False),
    }


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies_have_their_own_weights_and_alpha(block: Callable[[int], nn.Module], how: str) -> None:
    model = tiny.make_stack(CFG, block)
    set_alpha(model, 0.5)
    before = model(TOKENS)
    twin = copies(model)[how]
    assert type(twin.layers[0]) is type(model.layers[0])
    assert torch.equal(twin(TOKENS), before)
    set_alpha(twin, 0.0)
    with torch.no_grad():
        twin.layers[0].feed_forward[0].weight.zero_()
    assert (get_alpha(model), get_alpha(twin)) == (0.5, 0.0)
    assert torch.equal(model(TOKENS), before)
    assert not torch.equal(twin(TOKENS), before)
    assert all((x != 0).sum(-1).max() <= 6 for x in streams(twin)[:3])


def test_alpha_survives_casts_and_meta() -> None:
    model = tiny.make_stack(CFG)
    set_alpha(model, 0.3)
    model.to(torch.bfloat16)
    state = model.layers[0]._topk
    assert (get_alpha(model), state.alpha.dtype) == (0.3, torch.float32)
    assert state.alpha.item() == pytest.approx(0.3, abs=1e-7)
    with torch.device("meta"):
        model = tiny.make_stack(CFG)
    assert model(TOKENS.to("meta")).shape == (*TOKENS.shape, tiny.VOCAB)
    set_alpha(model, 0.3)
    model.to_empty(device="cpu")
    model.load_state_dict(tiny.make_stack(None).state_dict())
    assert model.layers[0]._topk.alpha.item() == pytest.approx(0.3, abs=1e-7)
    same = tiny.make_stack(CFG)
    set_alpha(same, 0.3)
    assert torch.equal(model(TOKENS), same(TOKENS))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_alpha_out_of_range(value: float) -> None:
    model = tiny.make_stack(CFG)
    with pytest.raises(ConfigError, match=r"must lie in \[0, 1\]"):
        set_alpha(model, value)
    assert get_alpha(model) == 0


def test_nan_in_a_weight_reaches_the_loss() -> None:
    model = tiny.make_stack(TopKConfig(k=1, n_dense_tail=0))
    with torch.no_grad():
        model.layers[0].feed_forward[2].weight[3, 0] = torch.nan
    for alpha in (0.0, 0.5):
        set_alpha(model, alpha)
        assert tiny.loss_of(model, tiny.make_batch(0)).isnan()


def shard(model: tiny.Stack) -> None:
    from torch.distributed.tensor import DTensor

    weight = model.layers[4].ffn_norm.weight
    fake = torch.Tensor._make_subclass(type("MyDTensor", (torch.Tensor,), {}), weight.detach())
    assert DTensor.__name__ == "DTensor"
    type(fake).__name__ = "DTensor"
    model.layers[4].ffn_norm._parameters["weight"] = fake


def wrap_fsdp(model: tiny.Stack) -> None:
    from torch.distributed.fsdp import FSDPModule

    model.layers[4].__class__ = type("FSDPSeamBlock", (FSDPModule, tiny.SeamBlock), {})


@pytest.mark.parametrize(("change", "message"), [
    (lambda m: sparsify(m, CFG), "sparsified already"),
    (lambda m: m.compile(), "the model is already compiled"),
    (lambda m: m.layers[4].compile(), "block 4 is already compiled"),
    (lambda m: m.layers.__setitem__(1, torch.compile(m.layers[1])), "block 1 is already compiled"),
    (lambda m: m.layers[1].attention.compile(), r"block 1 \(attention\) is already compiled"),
    (lambda m: setattr(m.layers[2], "forward", torch.compile(m.layers[2].forward)), "block 2 has a replaced forward"),
    (lambda m: m.layers.__setitem__(1, checkpoint_wrapper(m.layers[1])), "block 1 is already wrapped for activation"),
    (shard, "already sharded"),
    (wrap_fsdp, "block 4 is already sharded"),
])  # fmt: skip
def test_refuses_what_came_too_early(change: Callable[[tiny.Stack], object], message: str) -> None:
    model = tiny.make_stack(None)
    change(model)
    classes = [type(block) for block in model.layers]
    with pytest.raises(ConfigError, match=message):
        sparsify(model, CFG)
    assert [type(block) for block in model.layers] == classes


def test_refuses_a_compiled_model() -> None:
    with pytest.raises(ConfigError, match="already compiled"):
        sparsify(torch.compile(tiny.make_stack(None)), CFG)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="33 is more than the 32 entries"):
        sparsify(tiny.make_stack(None), TopKConfig(k=33))
    with pytest.raises(ConfigError, match="6 is more than the model's 5 blocks"):
        sparsify(tiny.make_stack(None), TopKConfig(k=3, n_dense_tail=6))
    with pytest.raises(ConfigError, match="did you mean topk") as caught:
        sparsify(tiny.make_stack(None), TopKConfig(activation="top_k", k=40, n_dense_tail=9))
    assert {problem.key for problem in caught.value.problems} == {"activation", "k", "n_dense_tail"}


def test_k_is_checked_at_the_first_forward_where_the_width_is_unknown() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    sparsify(model, TopKConfig(k=9, n_dense_tail=0))
    with pytest.raises(ConfigError, match="k = 9 is not between 1 and D"):
        model.layers[0](torch.randn(2, 8))
