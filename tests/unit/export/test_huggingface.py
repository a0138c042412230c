"""A whole export: what is in the directory, who can load it, and when there is none."""

from __future__ import annotations

import json
import struct

import pytest
import torch

pytest.importorskip("transformers")

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
)

from apps.export import CheckConfig, check
from tests.unit.export.models import TOPK, tiny_source
from topklm import load_model
from topklm.errors import CheckpointError, ConfigError, DataError, ParityError
from topklm.export import (
    HuggingFaceConfig,
    ParityConfig,
    check_parity,
    export_huggingface,
    huggingface,
    register,
)
from topklm.model.rope_scaling import RopeScaling
from topklm.sparsity import TopKConfig

FEW = ParityConfig(tokens=96)
TOKENS = torch.randint(258, (2, 30), generator=torch.Generator().manual_seed(0))
LLAMA3 = RopeScaling(type="llama3", factor=4.0, original_max_seqlen=16)
CASES = {
    "topk": {"topk": TOPK},
    "annealing, tied": {
        "topk": TopKConfig(k=6, n_dense_tail=1, anneal_form="relu"),
        "alpha": 0.5,
        "weight_tying": True,
    },
    "all sparse": {"topk": TopKConfig(k=6, n_dense_tail=0, anneal_form="identity")},
    "dense": {"topk": None},
    "dense tail is all": {"topk": TopKConfig(k=6, n_dense_tail=4)},
    "heads, rope": {"topk": TOPK, "n_kv_heads": 1, "head_dim": 16, "rope_scaling": LLAMA3, "rope_theta": 500.0},
}


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_same(case: str, tmp_path) -> None:
    source = tiny_source(**CASES[case])
    with torch.no_grad():
        expected = source.model(TOKENS)
    parity = export_huggingface(source, tmp_path / "out", parity=FEW)
    assert [p.precision for p in parity.precisions] == ["fp32", "fp64"]
    config = json.loads((tmp_path / "out/config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=source.is_sparse)
    if source.is_sparse:
        assert config["model_type"] == "topk_llama"
        assert config["topk"]["alpha"] == source.config.alpha
        assert (tmp_path / "out/modeling_topklm.py").is_file()
    else:
        assert type(loaded) is LlamaForCausalLM
        assert "auto_map" not in config
        assert "topk" not in config
        assert not (tmp_path / "out/modeling_topklm.py").exists()
    # fp32: a flip may be there, but not in most of the rows.
    same = (loaded(TOKENS).logits - expected).abs().amax(-1) < 1e-3
    assert same.double().mean() > 0.8
    again, tokenizer, back = load_model(tmp_path / "out")
    assert torch.equal(again(TOKENS), expected)
    assert back.alpha == source.config.alpha
    assert back.topk == (source.config.topk if source.is_sparse else None)
    assert tokenizer is not None
    assert tokenizer.encode("é <s>") == source.tokenizer.encode("é <s>")
    assert json.loads((tmp_path / "out/parity.json").read_text())["passed"] is True


@pytest.fixture
def unregistered(monkeypatch) -> None:
    """What is registered in the test ends with it."""
    for mapping in (CONFIG_MAPPING, MODEL_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))


@pytest.mark.usefixtures("unregistered")
def test_registered_it_loads_without_remote_code(tmp_path) -> None:
    source = tiny_source()
    export_huggingface(source, tmp_path, HuggingFaceConfig(), FEW)
    register()
    register()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded).__module__ == "topklm.export.modeling_topklm"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer(["the law of the land", "we"], padding=True, return_tensors="pt")
    assert batch["input_ids"][0, 0] == 256  # bytes have a BOS, and no data says that it was not used
    out = loaded.generate(**batch, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    alone = loaded.generate(**tokenizer("we", return_tensors="pt"), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert out[1, -5:].tolist() == alone[0, -5:].tolist()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rounded_weights_are_compared_with_rounded_weights(dtype: str, tmp_path) -> None:
    source = tiny_source()
    exact = source.model.tok_embeddings.weight.clone()
    parity = export_huggingface(source, tmp_path, HuggingFaceConfig(dtype=dtype, max_shard_size="20KB"), FEW)
    assert max(p.told_logit_max for p in parity.precisions) < 1e-3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.dtype == huggingface.DTYPES[dtype]
    assert torch.equal(loaded.get_input_embeddings().weight, exact.to(loaded.dtype))
    assert not check_parity(tmp_path, tmp_path, FEW).problems


def test_the_card_tells_what_one_must_know(tmp_path, caplog) -> None:
    run = {"data": {"root_dir": "gone", "sources": {"books": 3.0, "web": 1.0}, "global_batch_size": 8, "seq_len": 32}}
    source = tiny_source(alpha=0.25, run=run, document_mask=True)
    export_huggingface(source, tmp_path, HuggingFaceConfig(license="mit", title="Small"), FEW)
    card = (tmp_path / "README.md").read_text()
    head = card.split("---")[1]
    assert "license: mit" in head
    assert "library_name: transformers" in head
    expected = """# Small|trust_remote_code=True|first 3 of 4 blocks|k = 6 largest of 32|alpha = 0.25|as a dense model
        |`hidden_states[1]` to `hidden_states[3]`|books; 75.0%|Tokens seen in training: 5,120.|begins a text with BOS
        |one document per row|`step`; 20|rows that select differently"""
    for text in (*map(str.strip, expected.split("|")), "0" * 64, source.tokenizer.sha256):
        assert text in card.replace(" | ", "; "), text
    assert "document_mask" in caplog.text
    assert str(tmp_path) not in card


def test_the_card_of_a_dense_model_does_not_speak_of_topk(tmp_path) -> None:
    export_huggingface(tiny_source(None), tmp_path, parity=FEW)
    card = (tmp_path / "README.md").read_text()
    assert "trust_remote_code" not in card
    assert "sparse" not in card.lower()


def test_a_model_without_tokenizer_is_compared_on_random_tokens(tmp_path) -> None:
    parity = export_huggingface(tiny_source(tokenizer=None), tmp_path, parity=FEW)
    assert parity.text == "random tokens"
    assert not (tmp_path / "tokenizer.json").exists()
    assert "not part of this directory" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {}


def test_what_transformers_has_no_form_for_is_told_before_anything_is_written(tmp_path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="divisible"):
        export_huggingface(tiny_source(dim=30, n_heads=4, head_dim=8), tmp_path / "out", parity=FEW)
    source = tiny_source()
    object.__setattr__(source.config.topk, "activation", "of_a_user")
    with pytest.raises(ConfigError, match="'of_a_user' has no form for transformers"):
        export_huggingface(source, tmp_path / "out", parity=FEW)
    object.__setattr__(source.config.topk, "activation", "topk")
    with pytest.raises(ConfigError, match="max_shard_size"):
        export_huggingface(source, tmp_path / "out", HuggingFaceConfig(max_shard_size="much"), FEW)
    assert list(tmp_path.iterdir()) == []


def test_nothing_stands_there_if_the_models_or_the_tokenizers_differ(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(huggingface, "check_tokenizer", lambda *_, **__: (_ for _ in ()).throw(DataError("ids differ")))
    with pytest.raises(DataError, match="ids differ"):
        export_huggingface(tiny_source(), tmp_path / "out", parity=FEW)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()

    def swapped(state, config, right=huggingface.weights_to_hf):
        weights = right(state, config)
        a, b = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
        return {**weights, a: weights[b], b: weights[a]}

    monkeypatch.setattr(huggingface, "weights_to_hf", swapped)
    with pytest.raises(ParityError, match="logits differ"):
        export_huggingface(tiny_source(), tmp_path / "out", parity=FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["out.tmp"]
    assert json.loads((tmp_path / "out.tmp/parity.json").read_text())["passed"] is False


def flip_bits(path, name: str) -> None:
    """Damage one tensor of a safetensors file."""
    content = bytearray(path.read_bytes())
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    start, stop = header[name]["data_offsets"]
    for at in range(8 + size + start, 8 + size + stop, 4):
        content[at + 3] ^= 0x80  # signs
    path.write_bytes(content)


def test_a_damaged_export_fails_the_check(tmp_path) -> None:
    export_huggingface(tiny_source(), tmp_path / "out", parity=FEW)
    export_huggingface(tiny_source(), tmp_path / "good", parity=FEW)
    good, out = tmp_path / "good", tmp_path / "out"
    check_parity(good, out, FEW).demand()
    flip_bits(out / "model.safetensors", "model.layers.1.self_attn.v_proj.weight")
    with pytest.raises(ParityError, match="logits differ"):
        check_parity(good, out, FEW).demand()
    config = json.loads((good / "config.json").read_text())
    for changes, message in (({"k": 5}, "selects 5 entries, not 6"), ({"alpha": 0.5}, "logits differ")):
        (good / "config.json").write_text(json.dumps({**config, "topk": {**config["topk"], **changes}}))
        with pytest.raises(ParityError, match=message):
            check_parity_with_original(tmp_path, good).demand()
    (good / "config.json").write_text(json.dumps(config))
    (good / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        check_parity(out, good, FEW)


def check_parity_with_original(tmp_path, changed):
    export_huggingface(tiny_source(), tmp_path / "original", parity=FEW)
    return check_parity(tmp_path / "original", changed, FEW)


def test_the_check_prints_and_writes_its_figures(tmp_path, capsys) -> None:
    export_huggingface(tiny_source(), tmp_path / "out", parity=FEW)
    out = str(tmp_path / "out")
    check(CheckConfig(a=out, b=out, tokens=96, out=str(tmp_path / "figures.json")))
    shown = capsys.readouterr().out
    assert "they compute the same" in shown
    assert "sparse blocks" in shown
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["passed"] is True
    assert (figures["a"], figures["b"], figures["text"]) == ("out (topklm)", "out (transformers)", "sample text")
    assert [len(p["layers"]) for p in figures["precisions"]] == [3, 3]


@pytest.mark.usefixtures("unregistered")
def test_code_of_others_is_run_only_if_it_is_trusted(tmp_path) -> None:
    export_huggingface(tiny_source(), tmp_path, parity=FEW)
    register()  # which must not put our code in the place of theirs
    code = tmp_path / "modeling_topklm.py"
    code.write_text(code.read_text() + f"\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError, match="trust_remote_code=true"):
        check_parity(tmp_path, tmp_path, FEW)
    assert not (tmp_path / "ran").exists()
    assert not check_parity(tmp_path, tmp_path, FEW, trust_remote_code=True).problems
    assert (tmp_path / "ran").exists()


def test_a_sparse_model_without_the_code_is_told(tmp_path) -> None:
    export_huggingface(tiny_source(), tmp_path, parity=FEW)
    (tmp_path / "modeling_topklm.py").unlink()
    with pytest.raises(ConfigError, match="dense model, without a word"):
        check_parity(tmp_path, tmp_path, FEW)


def test_missing_weights_are_told(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    export_huggingface(tiny_source(None), tmp_path, parity=FEW)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    from topklm.export.sides import open_huggingface

    with pytest.raises(CheckpointError, match=r"missing_keys: model\.norm\.weight"):
        open_huggingface(tmp_path)
