"""What activations do between the steps of training: thresholds that run or learn, norms that are measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import tiny_stack as tiny
import torch
from cases import CASES, DIM, make
from torch import Tensor

from topklm.errors import ConfigError
from topklm.model import ModelConfig, build_model
from topklm.sparsity import (
    ActivationSteps,
    TopKConfig,
    activation_tensors,
    activations_of,
    measure_readers,
    record_health,
    set_alpha,
    sparsify,
)
from topklm.sparsity.registry import build_activation

LEARNS = [name for name in CASES if name != "normtopk"]
SMALL = ModelConfig(dim=24, n_layers=3, n_heads=4, multiple_of=8, vocab_size=31, max_seqlen=32)


@pytest.mark.parametrize("name", LEARNS)
def test_thirty_steps_lower_the_loss(name: str) -> None:
    losses = tiny.train_steps(tiny.make_stack(dataclasses.replace(CASES[name], n_dense_tail=2)), 30, 10)
    assert sum(losses[-5:]) / 5 < losses[0] - 0.5


@pytest.mark.parametrize("name", ["topk", "abstopk", "stat_topk"])
def test_straight_through_lowers_it_too(name: str) -> None:
    cfg = dataclasses.replace(CASES[name], n_dense_tail=2, gradient="straight_through")
    losses = tiny.train_steps(tiny.make_stack(cfg), 30, 10)
    assert sum(losses[-5:]) / 5 < losses[0] - 0.5


@pytest.mark.parametrize(("name", "near"), [("batchtopk", 2.0), ("jumprelu", 2.0)])
def test_the_mean_number_of_entries_comes_to_k(name: str, near: float) -> None:
    cfg = dataclasses.replace(CASES[name], n_dense_tail=2)
    model = tiny.make_stack(cfg)
    tiny.train_steps(model, 150, 10, lr=3e-3)
    with record_health(model) as health, torch.no_grad():
        for step in range(8):
            model.eval()(tiny.make_batch(step)[:, :-1])
    assert health.summary()["topk/l0_mean"] == pytest.approx(cfg.k, abs=near)


def test_the_running_threshold_is_the_mean_of_the_batches_own() -> None:
    momentum = 0.8
    activation = make(dataclasses.replace(CASES["batchtopk"], options={"momentum": momentum}))
    activation.threshold.zero_()
    activation.measured.zero_()
    generator = torch.Generator().manual_seed(1)
    expected, no = 0.0, torch.tensor(False)
    for step in range(7):
        parts = [torch.randn(2, 5, DIM, generator=generator) for _ in range(2)]
        before = activation.threshold.clone()
        seen = torch.zeros(2, dtype=torch.float64)
        for part in parts:
            out = activation.in_training(part, None)
            assert torch.equal(out, torch.where(part > before, part, 0).relu())  # that of the steps before
            seen += activation.seen
        assert torch.equal(activation.threshold, before)
        own = [sorted(part.double().flatten().tolist())[-10 * 6] for part in parts]
        expected += max(1 - momentum, 1 / (step + 1)) * (sum(own) / 2 - expected)
        activation.update(seen, no)
        assert activation.threshold.item() == pytest.approx(expected, abs=1e-6)
    before = activation.threshold.clone()
    activation.update(seen, torch.tensor(True))
    activation.update(seen * torch.nan, no)
    assert torch.equal(activation.threshold, before)
    assert activation.measured == 7


def test_training_with_the_threshold_is_causal_and_over_the_batch_is_not() -> None:
    x = torch.randn(2, 6, DIM, generator=torch.Generator().manual_seed(2))
    changed = x.clone()
    changed[:, 3:] += 5
    changed[1] += 5
    for selection, is_causal in (("threshold", True), ("batch", False)):
        activation = make(dataclasses.replace(CASES["batchtopk"], options={"selection": selection}))
        assert activation.noncausal_training != is_causal
        a, b = activation.in_training(x, None), activation.in_training(changed, None)
        assert torch.equal(a[0, :3], b[0, :3]) == is_causal
        # outside training the stored threshold alone
        assert torch.equal(activation(x, None)[0, :3], activation(changed, None)[0, :3])
        if not is_causal:
            assert int((activation.in_training(x.abs() + 1, None) != 0).sum()) == 12 * 6


@pytest.mark.parametrize("name", ["batchtopk", "jumprelu"])
def test_a_model_that_is_not_training_leaves_the_state_alone(name: str) -> None:
    model = tiny.make_stack(CASES[name])
    steps = ActivationSteps(model)
    seen = [activation.seen.clone() for activation in activations_of(model)]
    with torch.no_grad():
        model(tiny.make_batch(0))
    model.eval()(tiny.make_batch(0))
    assert all(torch.equal(a, b.seen) for a, b in zip(seen, activations_of(model), strict=True))
    assert steps.figures()["topk/threshold"] == activation_tensors(model)["layers.0.threshold"].mean()


@pytest.mark.parametrize("name", ["batchtopk", "jumprelu"])
def test_rows_that_fill_up_a_micro_batch_are_not_measured(name: str) -> None:
    """A batch that does not divide evenly moves the thresholds as one that does."""
    x = torch.randn(3, 5, DIM, generator=torch.Generator().manual_seed(4)).double()
    filled = torch.cat((x, torch.full((2, 5, DIM), 0.9, dtype=x.dtype)))
    whole, part = (make(CASES[name]) for _ in range(2))
    part.counted = torch.tensor([True] * 3 + [False] * 2)
    whole.in_training(x, None)
    part.in_training(filled, None)
    torch.testing.assert_close(part.seen, whole.seen, rtol=1e-12, atol=0)
    part.counted = torch.zeros(5, dtype=torch.bool)  # a rank that has none at all
    part.in_training(filled, None)
    assert not part.seen.any()


def jump_gradients(
    x: Tensor, threshold: Tensor, scale: float, grad: Tensor, alpha: float, width: float
) -> tuple[Tensor, Tensor]:
    """The estimator of arXiv 2407.14435, Eq. 11-12, for A(x) = s J(x / s), entry by entry in float64."""
    to_x, to_threshold = torch.zeros_like(x), torch.zeros_like(threshold)
    for n in range(len(x)):
        for i in range(x.shape[1]):
            u = (x[n, i] / scale - threshold[i]) / width
            to_x[n, i] = grad[n, i] * (1.0 if u > 0 else alpha)
            if abs(u) < 0.5:
                to_threshold[i] += -(1 - alpha) * scale * threshold[i] / width * grad[n, i]
    return to_x, to_threshold


@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_the_straight_through_estimator(alpha: float, scale: float) -> None:
    activation = make(CASES["jumprelu"])
    activation.scale.fill_(scale)
    generator = torch.Generator().manual_seed(3)
    x = (scale * (torch.rand(20, DIM, generator=generator) * 2 - 0.5).double()).requires_grad_()
    grad = torch.randn(20, DIM, generator=generator).double()
    activation(x, torch.tensor(alpha) if alpha else None).backward(grad)
    width, threshold = CASES["jumprelu"].options["bandwidth"], activation.threshold.detach().double()
    to_x, to_threshold = jump_gradients(x.detach(), threshold, scale, grad, alpha, width)
    assert to_threshold.count_nonzero() > 10
    torch.testing.assert_close(x.grad, to_x)
    torch.testing.assert_close(activation.threshold.grad.double(), to_threshold, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalty", ["target", "linear"])
def test_the_term_of_the_loss_and_its_gradient_over_micro_batches(penalty: str) -> None:
    options: dict[str, Any] = {"bandwidth": 0.3, "weight": 0.7, "penalty": penalty, "momentum": 0.5}
    activation = make(TopKConfig(activation="jumprelu", k=6, options=options))
    activation.measured.fill_(9)
    threshold, scale = activation.threshold.detach().double(), activation.scale.item()
    parts = [torch.rand(rows, 3, DIM, generator=torch.Generator().manual_seed(rows)) * 2 for rows in (2, 5)]
    seen = torch.zeros(3 + DIM, dtype=torch.float64)
    for part in parts:
        activation.in_training(part, None)
        seen += activation.seen
    x = torch.cat([part.view(-1, DIM) for part in parts]).double()
    l0 = (x > scale * threshold).double().sum(-1).mean()
    slope = -(((x / scale - threshold).abs() < 0.15).double().mean(0)) / 0.3
    value = 0.7 * ((l0 - 6) / 6) ** 2 if penalty == "target" else 0.7 * l0
    outer = 0.7 * 2 * (l0 - 6) / 36 if penalty == "target" else 0.7
    assert activation.scale.item() == scale  # that of the steps before, until the step is over
    assert activation.update(seen, torch.tensor(False)) == pytest.approx(value.item())
    torch.testing.assert_close(activation.threshold.grad.double(), outer * slope, rtol=1e-5, atol=1e-7)
    assert activation.scale.item() == pytest.approx((scale + x.square().mean().sqrt().item()) / 2, rel=1e-6)


@pytest.mark.parametrize("unit", [0.1, 1.0, 9.0])
def test_the_mean_number_of_entries_comes_to_k_in_any_unit_of_the_stream(unit: float) -> None:
    activation = build_activation(TopKConfig(activation="jumprelu", k=6), DIM)
    optimizer = torch.optim.Adam([activation.threshold], lr=activation.lr)
    x = unit * torch.randn(400, DIM, generator=torch.Generator().manual_seed(4))
    for _ in range(100):
        activation.in_training(x, None)
        activation.update(activation.seen, torch.tensor(False))
        optimizer.step()
        optimizer.zero_grad()
    assert activation.selected(x).sum(-1).double().mean() == pytest.approx(6, abs=0.1)
    assert activation.scale.item() == pytest.approx(unit, rel=0.05)


def test_a_step_that_is_not_taken_moves_nothing() -> None:
    for name in ("batchtopk", "jumprelu"):
        model = tiny.make_stack(CASES[name])
        steps = ActivationSteps(model)
        for found, moves in ((1.0, False), (0.0, True)):
            before = {key: tensor.detach().clone() for key, tensor in activation_tensors(model).items()}
            tiny.loss_of(model, tiny.make_batch(0)).backward()
            steps.add()
            steps.finish(1.0, torch.tensor(found))
            for key, tensor in activation_tensors(model).items():
                assert torch.equal(tensor, before[key]) != moves, (name, key)


@pytest.mark.parametrize("name", ["batchtopk", "jumprelu", "topk"])
def test_resuming_is_exact(name: str) -> None:
    def build() -> tuple[tiny.Stack, ActivationSteps, torch.optim.Optimizer]:
        model = tiny.make_stack(dataclasses.replace(CASES[name], n_dense_tail=1))
        return model, ActivationSteps(model), torch.optim.AdamW(model.parameters(), lr=1e-2)

    def run(model: Any, steps: Any, optimizer: Any, numbers: range) -> list[float]:
        losses = []
        for number in numbers:
            set_alpha(model, max(0.0, 1 - number / 4))
            loss = tiny.loss_of(model, tiny.make_batch(number))
            loss.backward()
            steps.add()
            optimizer.step()
            optimizer.zero_grad()
            steps.finish()
            losses.append(loss.item())
        return losses

    whole = run(*build(), range(8))
    model, steps, optimizer = build()
    run(model, steps, optimizer, range(5))
    stored = {key: tensor.clone() for key, tensor in steps.state_dict().items()}
    other, others, another = build()
    other.load_state_dict(model.state_dict())
    another.load_state_dict(optimizer.state_dict())
    for key, tensor in others.state_dict().items():
        tensor.copy_(stored[key])
    assert run(other, others, another, range(5, 8)) == whole[5:]
    assert bool(stored) == (name != "topk")


def test_what_reads_an_entry() -> None:
    model = build_model(SMALL, TopKConfig(activation="normtopk", k=5, n_dense_tail=0, options={"every": 3}))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    steps = ActivationSteps(model)
    steps.before(4)  # not now
    before = activation_tensors(model)["layers.0.reader_norm"].clone()
    steps.before(3)
    state, found = {k: v.double() for k, v in model.state_dict().items()}, activation_tensors(model)
    assert not torch.equal(before, found["layers.0.reader_norm"])
    for layer in range(3):
        total = torch.zeros(24, dtype=torch.float64)
        after = f"layers.{layer + 1}"
        readers = [(f"{after}.attention.{w}", f"{after}.attention_norm") for w in ("wq", "wk", "wv")] + [
            (f"{after}.feed_forward.{w}", f"{after}.ffn_norm") for w in ("w1", "w3")
        ]
        for matrix, norm in readers if layer < 2 else [("output", "norm")]:
            for i in range(24):
                total[i] += ((state[f"{matrix}.weight"][:, i] * state[f"{norm}.weight"][i]) ** 2).sum()
        expected = total.sqrt() / total.sqrt().mean()
        torch.testing.assert_close(found[f"layers.{layer}.reader_norm"].double(), expected, rtol=1e-5, atol=0)


def test_with_equal_norms_it_is_topk() -> None:
    x = torch.randn(7, DIM)
    weighted, plain = make(CASES["normtopk"]), make(CASES["topk"])
    assert not torch.equal(weighted(x, None), plain(x, None))
    weighted.reader_norm.fill_(0.3)
    assert torch.equal(weighted(x, None), plain(x, None))


def test_a_model_with_other_names_cannot_be_weighted() -> None:
    model = tiny.make_stack(None)
    with pytest.raises(ConfigError, match="names of Meta Lingua or Hugging Face"):
        sparsify(model, CASES["normtopk"])
    assert all(type(block) is tiny.SeamBlock for block in model.layers)  # nothing was changed


def test_the_names_of_hugging_face_are_known() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=31, hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4
    )
    live = transformers.LlamaForCausalLM(config)
    sparsify(live, TopKConfig(activation="normtopk", k=5, n_dense_tail=0))
    layer, found = live.model.layers[1], activation_tensors(live)["layers.0.reader_norm"]
    matrices = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
    matrices += [layer.mlp.gate_proj, layer.mlp.up_proj]  # the gains of the norms are 1
    total = sum(matrix.weight.detach().double().square().sum(0) for matrix in matrices).sqrt()
    torch.testing.assert_close(found.double(), total / total.mean(), rtol=1e-5, atol=0)
    head = live.lm_head.weight.detach().double().norm(dim=0)
    last = activation_tensors(live)["layers.2.reader_norm"].double()
    torch.testing.assert_close(last, head / head.mean(), rtol=1e-5, atol=0)


def test_state_goes_along_to_a_device_and_keeps_its_dtype() -> None:
    model = build_model(SMALL, TopKConfig(activation="jumprelu", k=5, n_dense_tail=1), "meta")
    (first, *_), names = activations_of(model), set(model.state_dict())
    model.to_empty(device="cpu").to(torch.bfloat16)
    assert first.threshold.dtype == torch.float32
    assert first.threshold.device.type == "cpu"
    assert (first.threshold == 0.001).all()
    assert names == set(build_model(SMALL, None, "meta").state_dict())
    assert not any("threshold" in name for name, _ in model.named_parameters())
    measure_readers(model)  # nobody asks


def test_copies_have_a_state_of_their_own() -> None:
    import copy
    import pickle

    model = tiny.make_stack(CASES["jumprelu"])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        tokens = tiny.make_batch(0)
        assert torch.equal(twin(tokens), model(tokens))
        activations_of(twin)[0].threshold.data.fill_(9.0)
        assert not torch.equal(twin(tokens), model(tokens))
