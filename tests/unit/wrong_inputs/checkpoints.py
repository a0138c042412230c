"""Mistakes with checkpoints: of a run that goes on, of a model to start from, of one that is read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.unit.wrong_inputs.case import Case
from tests.unit.wrong_inputs.place import STEP, again, cut, edit_json, flip, write

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
"""One process in fp32, which needs no process group: hashes of a checkpoint are looked at when it is resumed from."""
PARAMS = f"{STEP}/params.json"


class Marker:
    """A pickle that leaves a mark where it is loaded without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("marker",)


def _train(mistake: str, *args: str, exit_code: int = 5, **expected: Any) -> Case:
    return Case(mistake=mistake, program="train", args=("config=train.yaml", *args), exit_code=exit_code, **expected)


def _resume(mistake: str, *args: str, **expected: Any) -> Case:
    """What is found once the run is begun leaves the mark of its end."""
    leaves = ("run/.lock", "run/exit.json") if "environment" in expected else ()
    return _train(mistake, "dump_dir=run", *args, leaves=leaves, **expected)


def _generate(mistake: str, ckpt: str = "run", **expected: Any) -> Case:
    return Case(mistake=mistake, program="generate", args=(f"ckpt={ckpt}", "prompt=a"), **{"exit_code": 5, **expected})


def _without_hashes() -> None:
    """As a checkpoint of Lingua's, which has none: what is broken in it is found when it is read."""
    (Path(STEP) / "files.json").unlink()


def _pth(content: object) -> None:
    torch.save(content, "model.pth")


def _other_sizes() -> None:
    params = json.loads(Path("params.json").read_text())
    edit_json("params.json", model={**params["model"], "dim": 32})


def _hf(**changes: object) -> None:
    edit_json("hf/config.json", **changes)


def _pickled_weights() -> None:
    Path("hf/model.safetensors").unlink()
    torch.save({"a": Marker()}, "hf/pytorch_model.bin")


def _index(parts: dict[str, str]) -> None:
    Path("hf/model.safetensors").unlink()
    write("hf/model.safetensors.index.json", json.dumps({"weight_map": parts}))


def _another_saved_tokenizer() -> None:
    vocab = {"<s>": 0, "</s>": 1, **{chr(97 + i): 2 + i for i in range(26)}}
    import tokenizers

    from topklm.data.tokenizers import load_tokenizer

    tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[])).save("tokenizer.json")
    shutil.rmtree(f"{STEP}/tokenizer")
    load_tokenizer("hf", "tokenizer.json").save(Path(f"{STEP}/tokenizer"))
    again(STEP)


RESUMING = [
    _resume("another width than the run was started with", "model.dim=32", exit_code=2, key="model.dim",
            value="32, but this run was started with 16", remedy="another dump_dir"),
    _resume("another k, seed and sequence length", "topk.k=5", "seed=7", "data.seq_len=8", exit_code=2, key="topk.k",
            value="5, but this run was started with 4", remedy="another dump_dir",
            also=("seed: 7", "data.seq_len: 8", "3 problems")),
    _resume("a dense run of what was sparse", "topk=null", exit_code=2, key="topk", value="started with",
            remedy="another dump_dir"),
    _resume("other data than the run was trained on", exit_code=3, environment=ALONE, key="data", value="fingerprint",
            remedy="checkpoint.init_ckpt_path=run/checkpoints/0000000010",
            make=lambda: (shutil.rmtree("data/web"), shutil.copytree("data/books", "data/web"))),
    _resume("every checkpoint is broken", environment=ALONE, make=partial(flip, f"{STEP}/__0_0.distcp"),
            key="__0_0.distcp", value="SHA-256 differs", remedy="restore one of them"),
    _resume("half a file of weights", environment=ALONE, make=partial(cut, f"{STEP}/__0_0.distcp"),
            key="__0_0.distcp", value="bytes instead of", remedy="restore one of them",
            words_of=r"\d+ bytes instead of \d+"),
    _resume("a file of a checkpoint is gone", environment=ALONE,
            make=lambda: Path(f"{STEP}/train_state_00000.json").unlink(), key="train_state_00000.json",
            value="missing", remedy="restore one of them"),
    _resume("a checkpoint with a key that this version does not know",
            make=partial(again, STEP, quantum=1), exit_code=2, key=STEP, value="quantum: unknown key",
            remedy="checkpoint.init_ckpt_path", words_of=r"(?<=known here: ).*"),
    _resume("a checkpoint of an older version, without a key that is needed",
            make=partial(again, STEP, model={"width": 16}), exit_code=2, key=STEP, value="model.width: unknown key",
            remedy="checkpoint.init_ckpt_path"),
    _resume("a checkpoint of Meta Lingua's", exit_code=2, key="dump_dir", value="Meta Lingua wrote",
            remedy="continue_training_from_init=false",
            make=lambda: (_without_hashes(), edit_json(f"{STEP}/train_state_00000.json", acc_step=0,
                                                       data_loader_state={}, scheduler={}))),
]  # fmt: skip

STARTING = [
    _train("a checkpoint to start from that is not there", "checkpoint.init_ckpt_path=runn",
           key="checkpoint.init_ckpt_path", value="runn", remedy="correct the path"),
    _train("a checkpoint of another model", "checkpoint.init_ckpt_path=run", "model.n_layers=2",
           key="checkpoint.init_ckpt_path", value="9 parameters differ", remedy="layers.2"),
    _train("a wider model", "checkpoint.init_ckpt_path=model.pth", "model.dim=32", key="checkpoint.init_ckpt_path",
           value="(16, 16) in the checkpoint", remedy="(32, 32) in the model"),
    _train("going on from a file, which has no optimizer state", "checkpoint.init_ckpt_path=model.pth",
           "checkpoint.continue_training_from_init=true", key="checkpoint.continue_training_from_init",
           value="model.pth is a file", remedy="needs a checkpoint directory", exit_code=2),
    _train("a model to start from that is none", "init_from=data", key="init_from", value="data is no run",
           remedy="checkpoint directory", exit_code=2),
    _train("other sizes than the model to start from has", "init_from=hf", "model.dim=32", key="model.dim",
           value="32, but the model of init_from has 16", remedy="leave the key out", exit_code=2),
    _train("data of another tokenizer than the model to start from has", "init_from=run", key="data.root_dir",
           value="prepared with another tokenizer", remedy="prepare the data with", exit_code=2,
           make=_another_saved_tokenizer),
]  # fmt: skip


READING = [
    _generate("no checkpoint at all", ckpt="nowhere", key="nowhere", value="no run", remedy="correct the path"),
    _generate("a directory that holds none", ckpt="data", key="data", value="no run (checkpoints/)",
              remedy="give one of these"),
    _generate("an empty run", ckpt="empty", make=lambda: Path("empty/checkpoints").mkdir(parents=True), key="empty",
              value="no run", remedy="give one of these"),
    _generate("a damaged checkpoint", make=partial(flip, f"{STEP}/__0_0.distcp"), key=STEP,
              value="SHA-256 differs", remedy="restore"),
    _generate("a checkpoint without params.json", ckpt=STEP,
              make=lambda: (_without_hashes(), Path(PARAMS).unlink()),
              key=STEP, value="no params.json", remedy="copy it"),
    _generate("params.json that breaks off", ckpt=STEP, make=lambda: (_without_hashes(), cut(PARAMS)),
              key="params.json", value="cannot be read", remedy="copy it again", words_of=r"(?<=read: ).*(?=; )"),
    _generate("params.json of another project", ckpt=STEP,
              make=lambda: (_without_hashes(), write(PARAMS, '{"model": {"d_model": 16, "n_head": 2}}')),
              key="params.json", value="d_model: unknown key", remedy="no model of this project"),
    _generate("params.json that is a list", ckpt=STEP, make=lambda: (_without_hashes(), write(PARAMS, "[]")),
              key="params.json", value="list", remedy="copy it again"),
    _generate("metadata that break off", ckpt=STEP, make=lambda: (_without_hashes(), cut(f"{STEP}/.metadata")),
              key=STEP, value="metadata", remedy="copy it again", words_of=r"(?<=read: ).*(?=; )"),
    _generate("metadata that would run code", ckpt=STEP,
              make=lambda: (_without_hashes(), write(f"{STEP}/.metadata", pickle.dumps(Marker()))), key=STEP,
              value="mkdir, which has no place", remedy="Do not use it"),
    _generate("half a file of weights", ckpt=STEP,
              make=lambda: (_without_hashes(), cut(f"{STEP}/__0_0.distcp")), key=STEP, value="bytes instead of",
              remedy="copy it again", words_of=r"\d+ bytes instead of \d+"),
    _generate("a file that is no checkpoint", ckpt="docs.jsonl", key="docs.jsonl",
              value="cannot be read as a consolidated checkpoint", remedy="copy it again",
              words_of=r"(?<=checkpoint: )[^;]*"),
    _generate("half a consolidated file", ckpt="model.pth", make=partial(cut, "model.pth"), key="model.pth",
              value="cannot be read", remedy="copy it again", words_of=r"(?<=checkpoint: )[^;]*"),
    _generate("a consolidated file that would run code", ckpt="model.pth", make=partial(_pth, {"model": Marker()}),
              key="model.pth", value="mkdir, which is no tensor", remedy="nothing in it was run"),
    _generate("a whole object in place of weights", ckpt="model.pth", make=partial(_pth, [1, 2, 3]), key="model.pth",
              value="holds no state dict", remedy="torch.save"),
    _generate("weights of another width than params.json says", ckpt="model.pth", make=_other_sizes, key="model.pth",
              value="size mismatch", remedy="params.json", words_of=r"(?s)(?<=params.json: ).*"),
    _generate("a consolidated file alone", ckpt="model.pth", make=lambda: Path("params.json").unlink(),
              key="model.pth", value="no params.json", remedy="copy it"),
    _generate("a bundle in place of a checkpoint", ckpt="bundle", key="bundle", value="no run",
              remedy="give one of these"),
    _generate("an alpha beyond 1", key="alpha", value="1.5", remedy="[0, 1]", exit_code=2).with_args("alpha=1.5"),
    _generate("an alpha for a dense model", ckpt="hf", key="hf", value="dense model", remedy="leave alpha out",
              exit_code=2).with_args("alpha=0"),
    _generate("a model without a tokenizer", ckpt="hf", key="hf", value="no tokenizer", remedy="copy"),
]  # fmt: skip

HUGGING_FACE = [
    _generate("a model that is no Llama", ckpt="hf", make=partial(_hf, model_type="gpt2", architectures=["GPT2LMHead"]),
              key="model_type", value="'gpt2' is not a Llama", remedy="GPT2LMHead"),
    _generate("a model with biases, a quantised one", ckpt="hf", key="attention_bias", value="True",
              make=partial(_hf, attention_bias=True, quantization_config={"bits": 4}), remedy="quantization_config"),
    _generate("config.json that breaks off", ckpt="hf", make=partial(cut, "hf/config.json"), key="hf/config.json",
              value="cannot be read", remedy="download", words_of=r"(?<=read: )[^;]*"),
    _generate("no weights", ckpt="hf", make=lambda: Path("hf/model.safetensors").unlink(), key="hf",
              value="no weights", remedy="model.safetensors"),
    _generate("half a file of weights", ckpt="hf", make=partial(cut, "hf/model.safetensors"),
              key="hf/model.safetensors", value="damaged", remedy="download", words_of=r"(?<=damaged: )[^;]*"),
    _generate("weights of other sizes than config.json says", ckpt="hf", make=partial(_hf, hidden_size=32),
              key="hf", value="[258, 16] instead of [258, 32]", remedy="fit the model's configuration"),
    _generate("a part that is not there", ckpt="hf", make=partial(_index, {"a": "part-1.safetensors"}), key="hf",
              value="part-1.safetensors", remedy="download"),
    _generate("a part that lies elsewhere", ckpt="hf", make=partial(_index, {"a": "../model.pth"}),
              key="hf/model.safetensors.index.json", value="'../model.pth'", remedy="not read"),
    _generate("pickled weights that would run code", ckpt="hf", key="hf/pytorch_model.bin",
              value="mkdir, which is no tensor",
              remedy="nothing in it was run",
              make=_pickled_weights),
    _generate("a GGUF file that is none", ckpt="model.gguf", make=partial(write, "model.gguf", "GGUF none"),
              key="model.gguf", value="cannot read", remedy="download", words_of=r"(?<=gguf: )[^;]*"),
    _generate("two GGUF files", ckpt="gguf", make=lambda: [write(f"gguf/{n}.gguf", "GGUF") for n in "ab"], key="gguf",
              value="2 GGUF files", remedy="give one of them"),
]  # fmt: skip

GROUPS = {
    "Resuming a run": RESUMING,
    "Starting from another model": STARTING,
    "Reading a checkpoint": READING,
    "Models of Hugging Face": HUGGING_FACE,
}
