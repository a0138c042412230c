"""Settings of apps.generate: Meta Lingua's names, and what is told before a model is loaded."""

import pytest

from apps.generate import GenerateConfig, main
from topklm.config import describe, load_config
from topklm.errors import CheckpointError, ConfigError


def problems(*args):
    with pytest.raises(ConfigError) as caught:
        load_config(GenerateConfig, args)
    return {problem.key: problem.message for problem in caught.value.problems}


def test_a_file_of_settings_and_the_names_of_meta_lingua(tmp_path, caplog):
    path = tmp_path / "c.yaml"
    path.write_text(
        "ckpt: runs/x\nprompts: [one, two]\ntemperature: 0\nmax_gen_len: 3\nuntil: [x]\nmax_prompt_len: 9\n"
    )
    config = load_config(GenerateConfig, [f"config={path}", "top_p=0.5"])
    assert (config.sampling.max_tokens, config.sampling.stop, config.sampling.top_p) == (3, ["x"], 0.5)
    assert "max_prompt_len: prompts are never cut" in caplog.text
    plain = load_config(GenerateConfig, ["ckpt=a", "prompt=null", "max_tokens=5", "stop=[b]"])
    assert (plain.prompt, plain.sampling.max_tokens, plain.sampling.stop) == ("null", 5, ["b"])
    for choice in ("auto", "always", "never"):  # texts in YAML, which on and off are not
        config = load_config(GenerateConfig, ["ckpt=a", "prompt=b", f"sparse_projections={choice}"])
        assert config.sparse_projections == choice


def test_everything_that_is_wrong_is_told_at_once():
    found = problems(
        "prompt=x", "prompts=[y]", "top_p=2", "topk=3", "alpha=2", "batch_size=0", "show=none", "dtype=int8"
    )
    assert set(found) == {"ckpt", "prompt", "top_p", "topk", "alpha", "batch_size", "out", "dtype"}
    assert "not 2" in found["prompt"]
    assert "not none" in problems("ckpt=a")["prompt"]
    both = problems("ckpt=a", "prompt=x", "max_tokens=7", "max_gen_len=7", "stop=[a]", "until=[b, '']")
    assert set(both) == {"max_tokens", "until"}


def test_devices_and_checkpoints_that_are_not_there():
    for device, message in (("cuda:99", "cuda:99 is not here"), ("gpu", "'gpu' is no device")):
        with pytest.raises(ConfigError, match=message):
            main(GenerateConfig(ckpt="nowhere", prompt="x", device=device))
    with pytest.raises(CheckpointError, match="nowhere"):
        main(GenerateConfig(ckpt="nowhere", prompt="x", device="cpu"))


def test_help_tells_every_setting():
    text = describe(GenerateConfig, "generate", "Goes on.")
    for key in ("ckpt", "prompt", "temperature", "top_p", "max_gen_len", "out"):
        assert f"  {key}: " in text
