"""Mistakes with what the other programs read: bundles, entropies, results, runs, sweeps."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.unit.wrong_inputs.case import Case
from tests.unit.wrong_inputs.place import cut, edit_json, flip, write

META = "bundle/meta.json"


def _case(program: str, mistake: str, *args: str, **expected: Any) -> Case:
    return Case(mistake=mistake, program=program, args=args, **expected)


def _entropy(mistake: str, *args: str, **expected: Any) -> Case:
    return _case("entropy", mistake, *(args or ("bundle=bundle",)), **{"exit_code": 3, **expected})


def sealed(**changes: Any) -> None:
    """Another meta.json with the hash that fits: what an enemy can write, or another version."""
    from topklm.bundles.meta import _sha256

    edit_json(META, **changes)
    content = json.loads(Path(META).read_text())
    content.pop("sha256", None)
    Path(META).write_text(json.dumps({**content, "sha256": _sha256(content)}, ensure_ascii=False))


def _file_elsewhere() -> None:
    files = json.loads(Path(META).read_text())["files"]
    sealed(files={**files, "../docs.jsonl": {"size": Path("docs.jsonl").stat().st_size, "sha256": "0" * 64}})


def _other_corpus() -> None:
    shutil.copytree("bundle", "other")
    corpus = json.loads(Path(META).read_text())["corpus"]
    sealed(corpus={**corpus, "tokenizer_sha256": "0" * 64})


def _sweep(**changes: Any) -> None:
    write(
        "sweep.yaml",
        yaml.safe_dump({"dump_dir": "sweep", "base_config": "train.yaml", "grid": {"topk.k": [2, 4]}, **changes}),
    )


BUNDLES = [
    _entropy("a directory that is no bundle", "bundle=data", key="data", value="not a bundle",
             remedy="python -m apps.collect", exit_code=2),
    _entropy("a bundle of a newer version", make=partial(sealed, format_version=99), key=META,
             value="format version 99", remedy="update topklm", exit_code=2),
    _entropy("a bundle of an older version", make=partial(sealed, format_version=0), key=META,
             value="format version 0", remedy="collect it again", exit_code=2),
    _entropy("meta.json that was changed", make=partial(edit_json, META, n_tokens=1), key=META,
             value="hash does not fit", remedy="collect it again", exit_code=2),
    _entropy("meta.json that breaks off", make=partial(cut, META), key=META, value="damaged",
             remedy="collect it again", exit_code=2, words_of=r"\(.*\)"),
    _entropy("a layer that is gone", make=lambda: Path("bundle/layer_01.safetensors").unlink(), key="bundle",
             value="layer_01.safetensors is missing", remedy="copy it again", exit_code=2),
    _entropy("half a layer", make=partial(cut, "bundle/layer_01.safetensors"), key="bundle",
             value="layer_01.safetensors has", remedy="copy it again", exit_code=2,
             words_of=r"\d+ bytes instead of \d+"),
    _entropy("a layer with one wrong bit", make=partial(flip, "bundle/layer_01.safetensors"),
             key="bundle/layer_01.safetensors", value="SHA-256 differs", remedy="copy it again"),
    _entropy("a bundle that names files elsewhere", make=_file_elsewhere, key=META, value="../docs.jsonl",
             remedy="collect it again", exit_code=2),
    _entropy("bundles of different tokenizers", "bundle=bundle", "bundle=other", make=_other_corpus, key="bundle",
             value="tokenizer", remedy="force=true", exit_code=2),
    _entropy("a preset that there is not", "bundle=bundle", "preset=papr", key="preset", value="'papr'",
             remedy="did you mean paper?", exit_code=2),
]  # fmt: skip

COLLECTING = [
    _case("collect", "no model", "tokens=1M", key="ckpt", value="missing", remedy="a run or a checkpoint"),
    _case("collect", "a number of tokens in words", "ckpt=run", "tokens=many", key="tokens", value="'many'",
          remedy="such as 10M"),
    _case("collect", "a layer that there is not", "ckpt=run", "layers=[7]", "out=new", key="layers", value="7",
          remedy="0 ... 2"),
    _case("collect", "a step that was not saved", "ckpt=run", "ckpts=[99]", key="ckpts", value="99",
          remedy="which has 10"),
    _case("collect", "data of another tokenizer", "ckpt=run", "data=data", "sources=[books]", "out=new",
          make=lambda: edit_json("data/books/manifest.json", tokenizer={
              **json.loads(Path("data/books/manifest.json").read_text())["tokenizer"], "sha256": "0" * 64}),
          exit_code=3, key="000000000000", value="prepared with tokenizer", remedy="prepare the data with"),
    _case("collect", "data that are not there", "ckpt=run", "data=dta", "out=new", exit_code=3, key="dta",
          value="no prepared source", remedy="python -m apps.prepare"),
    _case("collect", "a device that there is not", "ckpt=run", "device=tpu", key="device", value="'tpu'",
          remedy="one of auto, cpu, cuda"),
    _case("collect", "the place holds another bundle", "ckpt=run", "out=bundle", "tokens=128", "context=16",
          key="bundle", value="holds another collection", remedy="overwrite=true"),
]  # fmt: skip

NEURONS = [
    _case("steer", "a neuron that there is not", "ckpt=run", "neuron=9:3", "offset=1", key="neuron", value="9:3",
          remedy="0 ... 2"),
    _case("steer", "a neuron without its layer", "ckpt=run", "neuron=17", "offset=1", key="neuron", value="17",
          remedy="LAYER:INDEX"),
    _case("ablate", "neither neurons nor layers", "ckpt=run", "bundle=bundle", key="neurons", value="missing",
          remedy="LAYER:INDEX"),
    _case("ablate", "a bundle of another checkpoint", "ckpt=model.pth", "bundle=bundle", "neurons=[1:3]",
          key="bundle", value="model.pth", remedy="force=true", words_of=r"(?<=small )\([0-9a-f]{12}\)"),
    _case("label candidates", "no entropies beside the bundle", "bundle=bundle", key="bundle", value="entropy",
          remedy="python -m apps.entropy"),
    _case("label words", "a directory without WordNet", "bundle=bundle", "wordnet=data", key="data",
          value="data.noun", remedy="scripts/fetch_wordnet.sh"),
    _case("label llm", "an address that is none", "bundle=bundle", "base_url=localhost:8000", "model=m",
          "neurons=[1:3]", key="base_url", value="localhost:8000", remedy="http://"),
    _case("label llm", "a key in the address", "bundle=bundle", "base_url=https://me:sk-1234567890@127.0.0.1/v1",
          "model=m", "neurons=[1:3]", key="base_url", value="has a password", remedy="give the bare address"),
    _case("label llm", "a key that no header can carry", "bundle=bundle", "base_url=http://127.0.0.1:1/v1", "model=m",
          "neurons=[1:3]", environment={"OPENAI_API_KEY": "two words"}, key="key_env", value="OPENAI_API_KEY",
          remedy="8 or more printable characters"),
    _case("trace", "neither token nor neuron", "run=run", key="token", value="missing", remedy="neuron=894"),
    _case("trace", "a run without bundles", "run=run", "neuron=1:3", key="run", value="bundles",
          remedy="python -m apps.collect"),
    _case("consistency", "one bundle alone", "bundle", key="bundles", value="bundle (TopK k=4) is alone",
          remedy="add a run"),
]  # fmt: skip

EVALUATION_AND_REPORTS = [
    _case("eval", "nothing to evaluate on", "ckpt=run", key="harness", value="neither",
          remedy="harness={tasks: [...]}"),
    _case("eval", "a checkpoint twice", "ckpt=run", "ckpts=[run]", "validation={}", key="ckpts",
          value="run is named twice",
          remedy="leave one out"),
    _case("eval compare", "a run without an evaluation", "run", key="run", value="evals", remedy="python -m apps.eval"),
    _case("eval compare", "no run", "out=tables", key="runs", value="empty", remedy="RUN RUN"),
    _case("report", "a directory that is no run", "runs=[data,run]", "out=new", key="data", value="config.yaml",
          remedy="dump_dir"),
    _case("report", "a run that has logged nothing", "runs=[run]", "out=new", key="runs[0]",
          value="run has not logged a training step", remedy="logging.freq",
          make=partial(write, "run/metrics.jsonl", "{")),
    _case("report", "bundles without entropies", "bundles=[bundle]", "out=new", key="bundle", value="entropy",
          remedy="python -m apps.entropy"),
    _case("report", "a result that is none", "bundles=[bundle]", "results=[data]", "out=new", key="results[0]",
          value="data", remedy="give the directory that an analysis wrote"),
    _case("generate", "neither prompt nor file", "ckpt=run", key="prompt", value="none", remedy="give one of"),
    _case("generate", "prompts that are not there", "ckpt=run", "prompts_file=no.txt", key="prompts_file",
          value="no.txt", remedy="correct the path", exit_code=3),
    _case("generate", "a GPU that is not here", "ckpt=run", "prompt=a", "device=cuda:7", key="device", value="cuda:7",
          remedy="GPUs"),
    _case("export", "no place for the export", "ckpt=run", "to=hf", key="out", value="missing", remedy="directory"),
    _case("export", "a place that holds something else", "ckpt=run", "to=lingua", "out=data", key="data",
          value="no earlier export", remedy="overwrite=true"),
    _case("export", "a form that there is not", "ckpt=run", "to=onnx", "out=new", key="to", value="'onnx'",
          remedy="hf, lingua, consolidated"),
]  # fmt: skip

SWEEPS = [
    _case("sweep", "a key that there is not", "config=sweep.yaml", make=partial(_sweep, grid={"topk.kk": [2]}),
          key="topk.kk", value="unknown key", remedy="did you mean topk.k?"),
    _case("sweep", "values that are no list", "config=sweep.yaml", make=partial(_sweep, grid={"topk.k": 4}),
          key="grid.topk.k", value="4", remedy="[4]"),
    _case("sweep", "one run of two that cannot be", "config=sweep.yaml", make=partial(_sweep, grid={"topk.k": [4, 99]}),
          key="topk.k", value="99", remedy="16"),
    _case("sweep", "a base that is not there", "config=sweep.yaml", make=partial(_sweep, base_config="bse.yaml"),
          key="base_config",
          value="bse.yaml", remedy="does not exist"),
]  # fmt: skip

GROUPS = {
    "Bundles": BUNDLES,
    "Collecting statistics": COLLECTING,
    "Neurons": NEURONS,
    "Evaluations, reports, exports, texts": EVALUATION_AND_REPORTS,
    "Sweeps": SWEEPS,
}
