"""Mistakes in the prepared data that a training run reads."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from tests.unit.wrong_inputs.case import Case
from tests.unit.wrong_inputs.place import cut, edit_json, flip, write

MANIFEST = "data/web/manifest.json"
TOKENS = "data/web/train/part_00000.tokens.npy"


def _train(mistake: str, *args: str, exit_code: int = 3, **expected: Any) -> Case:
    return Case(mistake=mistake, program="train", args=("config=train.yaml", *args), exit_code=exit_code, **expected)


def _another_tokenizer() -> None:
    manifest = json.loads(Path("data/books/manifest.json").read_text())
    edit_json("data/books/manifest.json", tokenizer={**manifest["tokenizer"], "sha256": "0" * 64})


def _leads_out() -> None:
    manifest = json.loads(Path(MANIFEST).read_text())
    manifest["shards"][0]["name"] = "../../books/train/part_00000"
    Path(MANIFEST).write_text(json.dumps(manifest))


def _unprepared() -> None:
    write("jsonl/web/web.chunk.00.jsonl", '{"text": "a"}\n')


DATA = [
    _train("no directory of the run's data", "data.root_dir=dta", key="data.root_dir", value="dta does not exist",
           remedy="apps.prepare"),
    _train("a source that is not there", "data.sources={wbe: 1.0}", key="wbe", value="not in data",
           remedy="did you mean web?"),
    _train("Lingua's files, which are not prepared", "data.root_dir=jsonl", make=_unprepared, key="data.root_dir",
           value="jsonl holds Meta Lingua's JSONL files", remedy="python -m apps.prepare"),
    _train("a preparation that is not finished", make=lambda: Path(MANIFEST).unlink(), key="data/web",
           value="manifest.json is missing", remedy="python -m apps.prepare"),
    _train("a manifest that breaks off", make=partial(cut, MANIFEST), key=MANIFEST, value="damaged",
           remedy="prepare the source again", words_of=r"\(.*\)"),
    _train("a manifest of a newer version", make=partial(edit_json, MANIFEST, format_version=99), key=MANIFEST,
           value="format version 99", remedy="update topklm"),
    _train("a manifest without its shards", make=partial(edit_json, MANIFEST, shards=...), key=MANIFEST,
           value="shards", remedy="prepare the source again"),
    _train("a manifest that names files elsewhere", make=_leads_out, key=MANIFEST, value="../../books/train/part_00000",
           remedy="prepare the source again"),
    _train("a shard that is gone", make=lambda: Path(TOKENS).unlink(), key=TOKENS, value="missing",
           remedy="copy them again"),
    _train("half a shard", make=partial(cut, TOKENS), key=TOKENS, value="cannot be read", remedy="copy them again",
           words_of=r"\(.*\)"),
    _train("a shard with one wrong bit", "data.verify=true", make=partial(flip, TOKENS), key=TOKENS,
           value="does not have the hash", remedy="copy them again"),
    _train("no tokenizer beside the shards", make=lambda: shutil.rmtree("data/web/tokenizer"), key="data/web/tokenizer",
           value="no saved tokenizer", remedy="prepare"),
    _train("sequences longer than the data", "data.seq_len=100000", key="data.seq_len", value="100001",
           remedy="use a smaller data.seq_len"),
    _train("two sources with different tokenizers", "data.sources={web: 1.0, books: 1.0}", make=_another_tokenizer,
           key="books 000000000000", value="different tokenizers", remedy="prepare them with one"),
    _train("BOS, where the data have it", "data.add_bos=false", key="data.add_bos", value="false",
           remedy="remove the key"),
    _train("another tokenizer than that of the data", "data.tokenizer={name: sp, path: t.model}",
           key="data.tokenizer.name", value="sp", remedy="remove the key"),
    _train("fewer embeddings than the tokenizer has", "model.vocab_size=100", exit_code=2, key="model.vocab_size",
           value="100 is not the 258", remedy="leave it at -1"),
    _train("more embeddings than the tokenizer has", "model.vocab_size=32000", exit_code=2, key="model.vocab_size",
           value="32000", remedy="leave it at -1"),
    _train("nothing held out to validate on", "eval={validation: {}}", exit_code=2, key="eval", value="held-out",
           remedy="val_fraction", make=lambda: edit_json(MANIFEST, shards=[
               shard for shard in json.loads(Path(MANIFEST).read_text())["shards"] if shard["split"] == "train"])),
    _train("four mistakes", "data.sources={wbe: 1.0, web: 1.0, books: 1.0}", "data.seq_len=100000",
           make=lambda: (_another_tokenizer(), Path(TOKENS).unlink()), key="wbe", value="did you mean web?",
           remedy="prepare", also=(TOKENS, "books has", "problems")),
]  # fmt: skip

GROUPS = {"Prepared data of a training run": DATA}
