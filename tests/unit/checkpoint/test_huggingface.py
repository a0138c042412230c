"""Loading directories as transformers writes them, whole and in parts, dense and sparse, and saying what is wrong."""

import dataclasses
import json
import sys

import pytest
import torch

from tests.unit.model.llama import VARIANTS, random_llama
from topklm import load_model, sparsify
from topklm.checkpoint import resolve
from topklm.errors import CheckpointError, ConfigError
from topklm.model.huggingface import config_to_hf
from topklm.sparsity import TopKConfig, set_alpha

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

CONFIG = VARIANTS["gqa"]
TOKENS = torch.arange(1, 25)[None]
TOPK = TopKConfig(k=5, n_dense_tail=1, anneal_form="identity", anneal_steps=40)


@pytest.fixture(scope="module")
def hf():
    return random_llama(config_to_hf(CONFIG))


@pytest.fixture
def saved(hf, tmp_path):
    hf.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_tokenizer(directory):
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {"<s>": 0, "</s>": 1, **{chr(97 + i): 2 + i for i in range(26)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_directory_loads_with_the_logits_of_transformers(name, tmp_path):
    hf = random_llama(config_to_hf(VARIANTS[name]))
    hf.save_pretrained(tmp_path)
    model, tokenizer, loaded = load_model(tmp_path)
    torch.testing.assert_close(model(TOKENS), hf(TOKENS).logits, atol=1e-5, rtol=1e-5)
    assert loaded.model == VARIANTS[name]
    assert (tokenizer, loaded.topk, loaded.alpha, loaded.step) == (None, None, None, None)
    assert loaded.run["huggingface"]["model_type"] == "llama"
    assert model.training is False


def test_parts_and_pickled_weights_load_as_the_whole(hf, saved, tmp_path):
    expected, _, whole = load_model(saved)
    hf.save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    (tmp_path / "pickled").mkdir()
    torch.save(hf.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "config.json").write_text((saved / "config.json").read_text())
    for form in ("parts", "pickled"):
        model, _, loaded = load_model(tmp_path / form)
        for name, weight in expected.state_dict().items():
            assert torch.equal(model.state_dict()[name], weight), (form, name)
        assert len(loaded.sha256) == 64
        assert loaded.sha256 != whole.sha256


def test_bf16_weights_are_their_fp32_values(hf, tmp_path):
    half = random_llama(config_to_hf(CONFIG)).bfloat16()
    half.save_pretrained(tmp_path)
    model, _, _ = load_model(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.output.weight, half.lm_head.weight.float())
    assert load_model(tmp_path, dtype=torch.bfloat16)[0].output.weight.dtype == torch.bfloat16


def test_the_hash_tells_configuration_and_weights(saved):
    before = load_model(saved)[2].sha256
    assert load_model(saved)[2].sha256 == before
    edit(saved, rms_norm_eps=1e-4)
    assert load_model(saved)[2].sha256 != before


@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_a_section_topk_makes_the_model_sparse(saved, alpha):
    dense, _, _ = load_model(saved)
    expected = sparsify(dense, TOPK)
    set_alpha(expected, alpha)
    edit(saved, model_type="topk_llama", architectures=["TopKLlamaForCausalLM"],
         topk={**dataclasses.asdict(TOPK), "alpha": alpha})  # fmt: skip
    model, _, loaded = load_model(saved)
    assert (loaded.topk, loaded.alpha) == (TOPK, alpha)
    assert torch.equal(model(TOKENS), expected(TOKENS))
    set_alpha(expected, 1.0)
    assert torch.equal(load_model(saved, alpha=1.0)[0](TOKENS), expected(TOKENS))


def test_a_dense_model_has_no_alpha_to_set(saved):
    with pytest.raises(ConfigError, match="dense"):
        load_model(saved, alpha=0.5)


def test_the_tokenizers_of_the_directory(saved, speeches):
    assert load_model(saved)[1] is None
    (saved / "tokenizer.model").write_bytes((speeches / "tokenizer.model").read_bytes())
    assert load_model(saved)[1].name == "sp"
    write_tokenizer(saved)
    tokenizer = load_model(saved)[1]
    assert (tokenizer.name, tokenizer.bos_id, tokenizer.eos_id) == ("hf", 0, 1)
    assert tokenizer.encode("abc") == [2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "mistral", "mlp_bias": True}, ["model_type", "mlp_bias"]),
        ({"model_type": "topk_llama"}, ["topk is missing"]),
        ({"topk": 7}, ["topk"]),
        ({"topk": {"k": 5}}, ["topk.alpha: None"]),
        ({"topk": {"k": 500, "n_dense_tail": 9, "alpha": 2}}, ["topk.k", "topk.n_dense_tail", "topk.alpha"]),
        ({"topk": {"kk": 5, "alpha": 0}}, ["did you mean k?"]),
        ({"num_hidden_layers": 3}, ["model.layers.2.mlp.up_proj.weight is missing"]),
        ({"vocab_size": 32}, ["model.embed_tokens.weight is [31, 24] instead of [32, 24]", "lm_head.weight"]),
    ],
)
def test_what_does_not_fit_is_told_at_once_with_its_place(saved, changes, told):
    edit(saved, **changes)
    with pytest.raises(CheckpointError) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)
    assert all(text in str(caught.value) for text in told)


def test_missing_and_damaged_files_are_named(hf, saved, tmp_path):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model(saved)
    weights.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_model(saved)
    (saved / "pytorch_model.bin").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read"):
        load_model(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_model(saved)
    hf.save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    parts = sorted((tmp_path / "parts").glob("model-0000[12]*.safetensors"))
    for part in parts:
        part.unlink()
    with pytest.raises(CheckpointError, match=f"2 of .* missing: {parts[0].name}, {parts[1].name}"):
        load_model(tmp_path / "parts")


@pytest.mark.parametrize("part", ["../secret.safetensors", "{root}/secret.safetensors", "a/../../secret.safetensors"])
def test_an_index_does_not_lead_out_of_its_directory(saved, tmp_path, part):
    whole = saved / "model.safetensors"
    whole.rename(saved.parent / "secret.safetensors")
    index = {"weight_map": {"model.norm.weight": part.format(root=saved.parent)}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names a file outside"):
        load_model(saved)


def test_gguf_files_are_found_and_the_package_is_told(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert resolve(tmp_path) == resolve(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install 'topklm\[gguf\]'"):
        load_model(tmp_path)
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"2 GGUF files; give one of them: a\.gguf, b\.gguf"):
        resolve(tmp_path)


def test_a_damaged_gguf_is_named(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(CheckpointError, match=r"cannot read .*a\.gguf"):
        load_model(tmp_path)
