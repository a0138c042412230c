"""`python -m apps.generate` as a user runs it."""

import json

import pytest

from tests.programs import run_app
from topklm import load_model
from topklm.generate import SamplingConfig, generate

pytestmark = pytest.mark.e2e


def test_text_is_printed_and_kept_with_what_made_it(whole, tmp_path):
    out = tmp_path / "out.json"
    prompt = "Once upon a time, there: was # ${no} 'one'"
    done = run_app(
        "apps.generate", f"ckpt={whole}", f"prompt={prompt}", "max_gen_len=9", "temperature=0.7", "top_p=0.9",
        "until=['zzz']", "seed=3", "compile_prefilling=true", f"out={out}",
    )  # fmt: skip
    record = json.loads(out.read_text())
    model, tokenizer, loaded = load_model(whole)
    config = SamplingConfig(max_tokens=9, temperature=0.7, top_p=0.9, stop=["zzz"], seed=3)
    ((expected,),) = generate(model, tokenizer, [prompt], config)
    (made,) = record["prompts"]
    assert made["prompt"] == prompt
    assert made["samples"][0]["text"] == expected.text
    assert made["samples"][0]["ids"] == expected.ids
    assert done.stdout == prompt + expected.text + "\n"
    assert "compile_prefilling" in done.stderr
    provenance = record["provenance"]
    assert provenance["checkpoint"] == {"path": str(loaded.path), "step": 24, "sha256": loaded.sha256}
    assert provenance["tokenizer"]["sha256"] == tokenizer.sha256
    assert (provenance["alpha"], provenance["dtype"], provenance["sampling"]["max_tokens"]) == (0.0, "fp32", 9)
    assert provenance["sampling"]["stop"] == ["zzz"]


def test_many_prompts_of_a_file_and_many_samples(whole, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('"The people"\n""\n')
    done = run_app(
        "apps.generate", f"ckpt={whole}", f"prompts_file={prompts}", "n_samples=2", "max_tokens=5", "batch_size=3",
        "dtype=bf16", "alpha=1", "show=end", "echo=false",
    )  # fmt: skip
    titles = [line for line in done.stdout.splitlines() if line.startswith("--- ")]
    assert titles == [f"--- prompt {p}, sample {s}" for p in (1, 2) for s in (1, 2)]
    assert "The people" not in done.stdout
    assert "4 completions" in done.stderr


def test_what_is_wrong_is_told_with_the_programs_exit_code(whole):
    long = run_app("apps.generate", f"ckpt={whole}", "prompt=one two three four", "context=4", check=2)
    assert "no room in the context of 4" in long.stderr
    assert long.stdout == ""
