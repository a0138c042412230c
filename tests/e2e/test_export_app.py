"""A trained model goes to people who have never heard of topklm, and comes back the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.programs import run_app
from tests.unit.export.test_huggingface import flip_bits
from topklm import load_model

pytest.importorskip("transformers")
pytestmark = pytest.mark.e2e

STRANGER = """
import json, sys

class NoTopklm:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "topklm":
            raise ImportError("there is no topklm here")

sys.meta_path.insert(0, NoTopklm())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

path, prompt = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).double()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
inputs = tokenizer([prompt, prompt + " of the United States"], padding=True, return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
states = model(**inputs, output_hidden_states=True).hidden_states
print(json.dumps({
    "ids": inputs["input_ids"].tolist(), "mask": inputs["attention_mask"].tolist(), "new": out[:, -8:].tolist(),
    "l0": [int((state != 0).sum(-1).max()) for state in states], "topklm": "topklm" in sys.modules,
    "class": type(model).__name__,
}))
"""


def test_an_export_runs_without_topklm_and_is_checked(whole, tmp_path):
    out = tmp_path / "out"
    done = run_app("apps.export", "to=hf", f"ckpt={whole}", f"out={out}", "parity.tokens=256")
    assert "rows that select differently" in done.stdout
    parity = json.loads((out / "parity.json").read_text())
    assert (parity["passed"], parity["text"]) == (True, "held-out text of sotu")
    assert "val/ppl@32" in (out / "README.md").read_text()

    prompt = "My fellow citizens"
    theirs = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(out), prompt], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}, timeout=300, check=False,
    )  # fmt: skip
    assert theirs.returncode == 0, theirs.stderr
    found = json.loads(theirs.stdout.splitlines()[-1])
    assert found["topklm"] is False
    assert found["class"] == "TopKLlamaForCausalLM"
    assert [n <= 8 for n in found["l0"][1:4]] == [True] * 3
    model, tokenizer, _ = load_model(whole, dtype=torch.float64)
    for i, text in enumerate((prompt, prompt + " of the United States")):
        ids = tokenizer.encode(text, bos=True)
        assert [token for token, kept in zip(found["ids"][i], found["mask"][i], strict=True) if kept] == ids
        for token in found["new"][i]:
            with torch.no_grad():
                logits = model(torch.tensor([ids]))[0, -1]
            logits[tokenizer.eos_id] = -torch.inf  # min_new_tokens
            assert token == logits.argmax()
            ids.append(token)

    flip_bits(out / "model.safetensors", "model.layers.2.mlp.down_proj.weight")
    failed = run_app("apps.export", "check", f"a={whole}", f"b={out}", "tokens=256", check=6)
    assert "logits differ" in failed.stderr
    assert "they compute the same" not in failed.stdout


def test_help_and_mistakes_are_told(whole, tmp_path):
    shown = run_app("apps.export", "--help").stdout
    assert "apps.export check" in shown
    assert "parity.tokens" in shown
    assert "trust_remote_code" in run_app("apps.export", "check", "--help").stdout
    wrong = run_app("apps.export", "to=gguf", "dtype=int4", "parity.tokens=1", check=2).stderr
    assert all(
        text in wrong for text in ("to: 'gguf'", "dtype", "parity.tokens", "ckpt: is missing", "out: is missing")
    )
    assert "b: is missing" in run_app("apps.export", "check", f"a={whole}", check=2).stderr
    (whole / "mine").mkdir()
    (whole / "mine" / "notes").touch()
    assert "overwrite=true" in run_app("apps.export", f"ckpt={whole}", f"out={whole / 'mine'}", check=2).stderr
