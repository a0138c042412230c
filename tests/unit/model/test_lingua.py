"""`backend: lingua` against the native model: names, initial weights, logits, gradients, TopK, masks.

With genuine blocks where a checkout of Meta Lingua is on PYTHONPATH, and always with stand-ins that have the interface
of Lingua's blocks and compute in our native ones. The latter hold our side of the interface: what the blocks are given.

Lingua casts to fp32 by `Tensor.float`; where a test makes that mean double, its blocks compute in float64 throughout,
and TopK can be compared exactly (docs/architecture.md and promise 11: fp32 noise flips selections).
"""

import dataclasses
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import create_selective_checkpoint_contexts

import topklm.model.lingua as backend
from tests.genuine import checkout, run_genuine
from topklm.config import build
from topklm.errors import ConfigError
from topklm.model import IGNORE, ModelConfig, build_model
from topklm.model.lingua import lingua_ffn_rule, lingua_ffn_width, lingua_sizes
from topklm.model.rope_scaling import RopeScaling
from topklm.model.transformer import TransformerBlock
from topklm.sparsity import SAVED_OPS, TopKConfig, set_alpha, sparsify, topk

TINY = ModelConfig(dim=48, n_layers=3, n_heads=4, multiple_of=16, vocab_size=61, max_seqlen=32)
VARIANTS = {
    "mha": TINY,
    "gqa": dataclasses.replace(TINY, n_kv_heads=2),
    "tied": dataclasses.replace(TINY, weight_tying=True, n_kv_heads=1),
    "own head_dim": dataclasses.replace(TINY, head_dim=10, n_kv_heads=2),
    "by head_dim": dataclasses.replace(TINY, n_heads=None, head_dim=12),
    "ffn_dim": dataclasses.replace(TINY, ffn_dim=77),
    "multiplier 0.3": dataclasses.replace(TINY, ffn_dim_multiplier=0.3),
    "multiplier 1.7": dataclasses.replace(TINY, ffn_dim_multiplier=1.7, multiple_of=5),
    "theta, eps": dataclasses.replace(TINY, rope_theta=500000.0, norm_eps=1e-3),
    "scaled rope": dataclasses.replace(TINY, rope_scaling=RopeScaling(factor=4.0, original_max_seqlen=16)),
}
SPARSE = TopKConfig(k=9, n_dense_tail=1)


class StandIn(TransformerBlock):
    """The interface of Lingua's block over our native one."""

    def forward(self, x, freq_cis, tok_idx=None, mask=None, attn_impl="sdpa"):
        cos, minus_sin, sin, cos_again = freq_cis.flatten(-2).unbind(-1)
        assert torch.equal(cos, cos_again)
        assert torch.equal(sin, -minus_sin)
        assert mask is not None, "with no mask and sdpa, Lingua's blocks attend in both directions"
        return super().forward(x, (cos, sin), None if isinstance(mask, str) and mask == "causal" else mask)


def stand_in_module():
    """A module that offers what ours uses of `lingua.transformer`."""

    @dataclasses.dataclass
    class Sizes:
        dim: int
        n_layers: int
        head_dim: int
        n_heads: int
        n_kv_heads: int
        ffn_dim_multiplier: float | None
        multiple_of: int
        norm_eps: float
        rope_theta: float
        init_base_std: float | None
        init_std_factor: str
        max_seqlen: int

    return types.SimpleNamespace(
        BaseTransformerArgs=Sizes, TransformerBlock=lambda sizes: StandIn(build(ModelConfig, dataclasses.asdict(sizes)))
    )


@pytest.fixture
def genuine():
    checkout()
    import lingua.transformer

    return lingua.transformer


@pytest.fixture(params=["genuine", "stand-in"])
def either(request, monkeypatch):
    """Which blocks `backend: lingua` has."""
    if request.param == "genuine":
        checkout()
    else:
        monkeypatch.setattr(backend, "lingua_transformer", stand_in_module)
    return request.param


@pytest.fixture
def float_is_double(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def both(config, sparse=None, dtype=torch.float32):
    """(native, lingua) of the same sizes."""
    return tuple(
        build_model(dataclasses.replace(config, backend=name), sparse).to(dtype) for name in ("native", "lingua")
    )


def tokens(seed=0, shape=(3, 24)):
    return torch.randint(0, TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def packed():
    """Documents of unequal lengths in each row, [3, 24]."""
    return torch.tensor([[0] * 7 + [1] * 17, [0] * 24, [0, 1] + [2] * 11 + [3] * 11])


def logits_and_gradients(model, documents=None):
    model.zero_grad()
    targets = tokens(1)
    targets[0, :5] = IGNORE
    model(tokens(), targets, document_ids=documents).backward()
    return model(tokens(), document_ids=documents), {name: p.grad for name, p in model.named_parameters()}


def assert_same(a, b, documents=None, **tolerance):
    (logits, grads), (other_logits, other_grads) = (logits_and_gradients(model, documents) for model in (a, b))
    torch.testing.assert_close(logits, other_logits, **tolerance)
    for name, grad in grads.items():
        torch.testing.assert_close(other_grads[name], grad, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_same_parameters_from_the_same_seed(either, config):
    native, lingua = both(config, SPARSE)
    assert list(native.state_dict()) == list(lingua.state_dict())
    for (name, a), b in zip(native.state_dict().items(), lingua.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not list(lingua.buffers())
    names = [type(block).__name__ for block in lingua.layers]
    assert names == (["TopKStandIn"] * 2 + ["StandIn"] if either == "stand-in" else
                     ["TopKTransformerBlock"] * 2 + ["TransformerBlock"])  # fmt: skip
    module = {"stand-in": __name__, "genuine": "lingua.transformer"}[either]
    assert {type(block).__module__ for block in lingua.layers} == {module}


@pytest.mark.parametrize("documents", [None, packed()], ids=["causal", "packed"])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_dense_logits_and_gradients_in_fp32(either, config, documents):
    assert_same(*both(config), documents, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", [None, 1.0, 0.4, 0.0])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_and_gradients_in_float64(either, float_is_double, config, alpha):
    """Dense (None) and TopK. To 1e-9: a flipped selection would show as about 1e-2."""
    native, lingua = both(config, None if alpha is None else SPARSE, torch.float64)
    if alpha is not None:
        set_alpha(native, alpha)
        set_alpha(lingua, alpha)
    assert_same(native, lingua, packed(), atol=1e-9, rtol=1e-9)


def test_topk_in_fp32_given_equal_masks(either):
    """Selections that differ are counted, few, and only where the k-th and the next value are closer than the noise."""
    config = dataclasses.replace(TINY, dim=256, n_layers=4, n_kv_heads=2)
    sparse = dataclasses.replace(SPARSE, k=16)
    native, lingua = both(config, sparse)
    inputs = {}  # of each model and sparse layer: the stream before the cut, [rows, D]
    with torch.no_grad():
        for model in (native, lingua):
            seen = inputs[model] = []
            see = types.SimpleNamespace(see=lambda block, activation, x, seen=seen: seen.append(x.flatten(0, 1)))
            model.layers[0]._topk.recorder = see
            model(tokens(shape=(8, 32)))
            model.layers[0]._topk.recorder = None
    flips, rows = 0, 0
    for a, b in zip(inputs[native], inputs[lingua], strict=True):
        differ = ((topk(a, 16) != 0) != (topk(b, 16) != 0)).any(-1)
        top = a.topk(17).values
        margin = top[:, 15] - top[:, 16]  # [rows]
        assert (margin[differ] <= 2 * (a - b).abs().amax(-1)[differ]).all()
        flips, rows = flips + differ.sum().item(), rows + len(a)
        if flips == 0:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    print(f"\n{either}: {flips} of {rows} selections flipped")
    assert flips / rows < 0.05  # a flip goes on through the layers; and Lingua's products may be another library's


@pytest.mark.parametrize("sparse", [None, SPARSE], ids=["dense", "topk"])
def test_a_position_sees_nothing_of_later_ones_or_of_other_documents(either, sparse):
    _, lingua = both(TINY, sparse)
    x, changed = tokens(), tokens()
    changed[:, 15:] = (changed[:, 15:] + 5) % TINY.vocab_size
    before, after = lingua(x), lingua(changed)
    assert torch.equal(before[:, :15], after[:, :15])
    assert not torch.equal(before[:, 15], after[:, 15])
    documents = torch.zeros_like(x)
    documents[:, 7:] = 1
    first = x.clone()
    first[:, :7] = (first[:, :7] + 5) % TINY.vocab_size
    assert torch.equal(lingua(x, document_ids=documents)[:, 7:], lingua(first, document_ids=documents)[:, 7:])


def test_bf16_by_the_same_rule(either):
    native, lingua = both(TINY, dtype=torch.bfloat16)
    assert lingua(tokens()).dtype == torch.bfloat16
    exact = build_model(TINY, None)(tokens())
    error = [(model(tokens()).float() - exact).abs().mean() for model in (native, lingua)]
    assert error[1] < 1.5 * error[0]


def test_no_cache_of_ours(either):
    _, lingua = both(TINY)
    with pytest.raises(ConfigError, match="load_model gives the native model"):
        lingua.hidden(tokens(), cache=object())


# --- genuine Lingua's own model -------------------------------------------------------------------------------------


class Head(torch.nn.Module):
    """An embedding and a head around a genuine BaseTransformer, so that it can be trained."""

    def __init__(self, genuine, **changes):
        super().__init__()
        torch.manual_seed(0)
        sizes = lingua_sizes(dataclasses.replace(TINY, n_layers=5, n_kv_heads=2, **changes))
        self.embedding = torch.nn.Embedding(61, 48)
        self.transformer = genuine.BaseTransformer(genuine.BaseTransformerArgs(**sizes))
        self.transformer.init_weights()

    def forward(self, x):
        return F.linear(self.transformer(self.embedding(x), mask="causal"), self.embedding.weight)

    def losses(self, steps=4):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        losses = []
        for step in range(steps):
            set_alpha(self.transformer, 1 - step / 2 if step < 2 else 0.0)
            loss = F.cross_entropy(self(tokens(step)).flatten(0, 1), tokens(step + 1).flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses


def test_sparsify_cuts_the_stream_of_a_genuine_base_transformer(genuine):
    dense, sparse = Head(genuine).transformer, Head(genuine).transformer
    assert sparsify(sparse, SPARSE) is sparse
    assert list(dense.state_dict()) == list(sparse.state_dict())
    h = torch.randn(2, 24, 48, generator=torch.Generator().manual_seed(0))
    expected = h
    for i, block in enumerate(dense.layers):
        expected = block(expected, dense.rope_embeddings(seqlen=32), mask="causal")
        expected = topk(expected, 9) if i < 4 else expected
    assert torch.equal(sparse(h, mask="causal"), expected)
    assert not torch.equal(sparse(h), expected)  # the trap: without a mask it attends in both directions
    set_alpha(sparse, 1.0)
    torch.testing.assert_close(sparse(h, mask="causal"), dense(h, mask="causal"), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("recomputed", "compiled"),
    [
        ("none", "blocks"),
        ("none", "whole"),
        ("blocks", "eager"),
        ("blocks", "blocks"),
        ("whole", "eager"),
        ("whole", "whole"),
    ],
)
def test_a_sparsified_genuine_model_trains_the_same_however_it_is_run(genuine, recomputed, compiled):
    """Lingua wraps and compiles the whole model, we wrap and compile blocks."""
    torch._dynamo.reset()
    plain, model = Head(genuine), Head(genuine)
    for each in (plain, model):
        sparsify(each.transformer, SPARSE)
    expected = plain.losses()
    layers = model.transformer.layers

    def wrapped(module):
        return checkpoint_wrapper(module, context_fn=lambda: create_selective_checkpoint_contexts([*SAVED_OPS]))

    if recomputed == "blocks":
        for i, block in enumerate(layers):
            layers[i] = wrapped(block)
    if recomputed == "whole":
        model.transformer = wrapped(model.transformer)
    for module in {"eager": [], "blocks": list(layers), "whole": [model]}[compiled]:
        module.compile(backend="aot_eager")
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.losses() == pytest.approx(expected, abs=1e-5)
    assert min(expected[2:]) < expected[0]
    torch._dynamo.reset()


OWN_MODEL = """
from apps.main.transformer import LMTransformer, LMTransformerArgs
cases = torch.load("cases.pt", weights_only=True)
for case in cases:
    model = LMTransformer(LMTransformerArgs(**case["sizes"]))
    case["keys"] = list(model.state_dict())
    model.load_state_dict(case["weights"])
    if case["k"]:
        from topklm import TopKConfig, sparsify
        torch.Tensor.float = torch.Tensor.double  # in float64: TopK is compared where no noise flips it
        model.rope_embeddings.double().reset_parameters()
        sparsify(model.double(), TopKConfig(k=case["k"], n_dense_tail=1))
    loss = model(case["tokens"], case["targets"])
    loss.backward()
    case["loss"], case["logits"] = loss.detach(), model(case["tokens"]).detach()
    case["grads"] = {name: p.grad for name, p in model.named_parameters()}
    torch.Tensor.float = torch._C.TensorBase.float
torch.save(cases, "answers.pt")
"""


def test_linguas_own_language_model_computes_what_the_native_one_does(genuine, tmp_path):
    """Weights of ours (tied ones with Lingua's repeated key) in its LMTransformer: loss, logits, every gradient."""
    cases = []
    for name in ("mha", "gqa", "tied", "own head_dim", "ffn_dim", "multiplier 0.3", "multiplier 1.7", "theta, eps"):
        for k in (0, 9):
            config = VARIANTS[name]
            weights = build_model(config, None).state_dict()
            if config.weight_tying:
                weights["output.tied_module.weight"] = weights["tok_embeddings.weight"]
            sizes = {**lingua_sizes(config), "vocab_size": config.vocab_size, "weight_tying": config.weight_tying}
            cases.append({"name": name, "sizes": sizes, "weights": weights, "k": k, "tokens": tokens(),
                          "targets": tokens(1)})  # fmt: skip
    torch.save(cases, tmp_path / "cases.pt")
    run_genuine(OWN_MODEL, cwd=tmp_path)
    for case in torch.load(tmp_path / "answers.pt", weights_only=True):
        config, k = VARIANTS[case["name"]], case["k"]
        ours = build_model(config, TopKConfig(k=k, n_dense_tail=1) if k else None)
        ours = ours.double() if k else ours
        assert sorted(case["keys"]) == sorted(case["weights"])
        tolerance = {"atol": 1e-9, "rtol": 1e-9} if k else {"atol": 1e-5, "rtol": 1e-5}
        loss = ours(tokens(), tokens(1))
        loss.backward()
        torch.testing.assert_close(loss, case["loss"], **tolerance)
        torch.testing.assert_close(ours(tokens()), case["logits"], **tolerance)
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, case["grads"][name], **tolerance)


# --- sizes, and what is missing --------------------------------------------------------------------------------------


@given(st.integers(1, 9000), st.integers(1, 40000))
def test_every_width_has_a_rule_of_linguas(dim, ffn_dim):
    multiple_of, multiplier = lingua_ffn_rule(dim, ffn_dim)
    assert lingua_ffn_width(dim, multiple_of, multiplier) == ffn_dim
    assert ffn_dim % multiple_of == 0


def test_round_rules_where_there_are():
    assert lingua_ffn_rule(1024, 2816) == (256, None)
    assert lingua_ffn_rule(2048, 2816) == (256, 0.5)
    assert lingua_ffn_rule(1024, 4096) == (256, 1.5)


def test_heads_that_linguas_blocks_refuse():
    with pytest.raises(ConfigError, match=r"divisible by n_heads, not 50 and 4"):
        build(ModelConfig, {"dim": 50, "n_heads": 4, "head_dim": 8, "backend": "lingua"})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"none on PYTHONPATH: git clone .*pip install 'topklm\[lingua\]'"),
        (["lingua/__init__.py", "lingua/detector.py"], "is not Meta Lingua, it has no transformer.py"),
        (
            ["lingua/lingua/__init__.py", "lingua/lingua/transformer.py"],
            r"is a checkout of Meta Lingua: export PYTHONPATH",
        ),
        (["lingua/__init__.py", "lingua/transformer.py"], "xformers, which is missing"),
        (["lingua/__init__.py", "lingua/transformer.py", "xformers/__init__.py"], "it has no TransformerBlock, Base"),
    ],
)
def test_what_is_missing_is_told(files, message, tmp_path, monkeypatch):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in lingua_modules():
        monkeypatch.delitem(sys.modules, name)  # the genuine ones come back after the test
    with pytest.raises(ConfigError, match=message):
        build_model(dataclasses.replace(TINY, backend="lingua"), None, "meta")
    for name in lingua_modules():
        del sys.modules[name]


def lingua_modules():
    return [name for name in sys.modules if name.partition(".")[0] in ("lingua", "xformers")]
