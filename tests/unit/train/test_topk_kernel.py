"""`distributed.topk_kernel`: how a run's TopK blocks compute, and what is told before the first step."""

import logging

import pytest
import torch

from topklm.errors import ConfigError
from topklm.model import ModelConfig, build_model
from topklm.sparsity import TopKConfig, activations_of
from topklm.sparsity.kernels import choice
from topklm.train.parallel import DistributedConfig, World, parallelize
from topklm.train.settle import FIXED

MODEL = ModelConfig(dim=32, n_layers=3, n_heads=2, vocab_size=64)


def set_up(kernel, device="cpu", topk=TopKConfig(k=4, n_dense_tail=1)):  # noqa: B008 - frozen
    model = build_model(MODEL, topk, "meta")
    parallelize(model, World(0, 0, 1, torch.device(device)), DistributedConfig(model_dtype="fp32", topk_kernel=kernel))
    return [activation.kernel.choice for activation in activations_of(model)]


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_every_sparse_block_has_it(kernel):
    assert set_up(kernel) == [kernel] * 2
    assert set_up(kernel, topk=None) == []


@pytest.mark.parametrize("width", [32, None])
def test_any_model_with_layers_is_wrapped(width):
    """Its width may stand in its norms, or nowhere."""
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.Module()])
    if width:
        model.layers[0].norm = torch.nn.RMSNorm(width)
    parallelize(model, World(0, 0, 1, torch.device("cpu")), DistributedConfig(model_dtype="fp32"))


def test_what_cannot_be_had_is_an_error_of_its_key():
    for topk in (TopKConfig(k=4, n_dense_tail=1), TopKConfig(activation="relu", n_dense_tail=1)):
        with pytest.raises(ConfigError, match=r"distributed\.topk_kernel.*take auto"):
            set_up("triton", topk=topk)


def test_a_gpu_without_it_is_told(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, logger="topklm.train")
    monkeypatch.setattr(choice, "why_absent", lambda: "no Triton")
    set_up("auto")
    assert not caplog.records  # on a CPU there is nothing to tell
    set_up("auto", "cuda")
    assert "slower and with the same results: no Triton" in caplog.text


def test_a_run_may_change_it():
    assert not any("distributed".startswith(key) for key in FIXED)
