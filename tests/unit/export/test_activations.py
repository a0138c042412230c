"""Every activation as a directory that transformers loads and as a consolidated file, with thresholds and norms."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM

from tests.unit.export.models import tiny_source
from topklm import load_model
from topklm.errors import CheckpointError, ConfigError
from topklm.export import ParityConfig, export_huggingface
from topklm.export.consolidated import export_consolidated
from topklm.export.lingua import export_lingua
from topklm.model import build_model
from topklm.sparsity import TopKConfig, activation_tensors

FEW = ParityConfig(tokens=96)
TOKENS = torch.randint(258, (2, 30), generator=torch.Generator().manual_seed(0))
BASE = {"k": 6, "n_dense_tail": 1, "anneal_steps": 10}
CASES = {
    "abstopk": {"anneal_form": "identity"},
    "grouptopk": {"k": 2, "options": {"groups": 4}},
    "normtopk": {},
    "stat_topk": {},
    "batchtopk": {},
    "jumprelu": {},
    "relu": {},
    "identity": {"anneal_form": "identity", "schedule": "none", "anneal_steps": 0},
    "topk": {"k_per_layer": [3, 6, 9], "schedule": "k"},
}


def source_of(name: str, alpha: float = 0.0):
    source = tiny_source(TopKConfig(**{**BASE, "activation": name, **CASES[name]}), alpha, run={"huggingface": {}})
    generator = torch.Generator().manual_seed(3)
    for tensor in activation_tensors(source.model).values():
        tensor.data.copy_(0.1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    return source


@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_the_same(name: str, tmp_path) -> None:
    source = source_of(name, alpha=0.5 if name in ("topk", "jumprelu") else 0.0)
    with torch.no_grad():
        expected = source.model(TOKENS)
    parity = export_huggingface(source, tmp_path / "out", parity=FEW)  # in fp64 nothing is selected otherwise
    assert not parity.problems
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("\n| k | " in card) == (name not in ("relu", "identity"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert ((loaded(TOKENS).logits - expected).abs().amax(-1) < 1e-3).double().mean() > 0.8
    again, _, back = load_model(tmp_path / "out")
    assert torch.equal(again(TOKENS), expected)
    assert back.topk == source.config.topk
    state = activation_tensors(source.model)
    assert activation_tensors(again).keys() == state.keys()
    for key, tensor in activation_tensors(again).items():
        assert torch.equal(tensor, state[key])


def test_the_file_runs_without_topklm_and_keeps_thresholds_in_fp32(tmp_path) -> None:
    source = source_of("jumprelu")
    export_huggingface(source, tmp_path / "out", parity=FEW)
    torch.save(source.model(TOKENS).detach(), tmp_path / "expected.pt")
    code = f"""
import sys, torch
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "topklm": raise ImportError("topklm is not here")
sys.meta_path.insert(0, Refuse())
from transformers import AutoModelForCausalLM
tokens, expected = torch.tensor({TOKENS.tolist()}), torch.load({str(tmp_path / "expected.pt")!r})
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True)
assert ((model(tokens).logits - expected).abs().amax(-1) < 1e-3).double().mean() > 0.8
half = AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r}, trust_remote_code=True, dtype=torch.bfloat16)
assert half.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
assert torch.equal(half.model.layers[0].activation.threshold.float(), model.model.layers[0].activation.threshold)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["batchtopk", "jumprelu", "normtopk"])
def test_a_consolidated_file_has_the_state_too(name: str, tmp_path, caplog) -> None:
    source = source_of(name)
    file = export_consolidated(source, tmp_path / "out")
    model, _, _ = load_model(file)
    assert torch.equal(model(TOKENS), source.model(TOKENS))
    content = torch.load(file)
    assert content["activation"].keys() == activation_tensors(source.model).keys()
    # without it the model is another one, and that is told
    torch.save({key: value for key, value in content.items() if key != "activation"}, file)
    with pytest.raises(CheckpointError, match="lacks the state of its activations"):
        load_model(file)
    # a dense model takes the weights and passes it over, as it does with alpha
    torch.save(content, file)
    from topklm.checkpoint import read_activations, read_weights

    dense = build_model(source.config.model, None)
    dense.load_state_dict(read_weights(file, dense)[0])
    with caplog.at_level(logging.INFO, "topklm.checkpoint"):
        read_activations(file, dense)
    assert "which this model does not have" in caplog.text


def test_lingua_has_no_place_for_thresholds(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"9 tensors .*to=hf or to=consolidated"):
        export_lingua(source_of("jumprelu"), tmp_path / "out")
    topk = dataclasses.replace(source_of("topk").config.topk, schedule="mask", anneal_steps=0)
    export_lingua(tiny_source(topk), tmp_path / "topk")
    assert "k_per_layer=[3, 6, 9]" in (tmp_path / "topk" / "README.md").read_text()
