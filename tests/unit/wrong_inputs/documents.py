"""Mistakes in what documents are prepared from: `apps.prepare`."""

from __future__ import annotations

import gzip
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from tests.unit.wrong_inputs.case import Case
from tests.unit.wrong_inputs.place import cut, lines, write

GZIP = "sources.web.path=docs.jsonl.gz"


def _prepare(mistake: str, *args: str, **expected: Any) -> Case:
    return Case(mistake=mistake, program="prepare", args=("config=prepare.yaml", *args), **expected)


def _begun(mistake: str, *args: str, **expected: Any) -> Case:
    """Found while documents are read: what is done is kept for the next start, and there is no manifest."""
    return _prepare(mistake, *args, exit_code=3, leaves=("prepared",), **expected)


def _parquet(**columns: list[Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), "docs.parquet")


def _zst() -> None:
    import pyarrow

    with pyarrow.CompressedOutputStream("docs.jsonl.zst", "zstd") as stream:
        stream.write(Path("docs.jsonl").read_bytes())
    cut("docs.jsonl.zst")


def _wide() -> None:
    """UTF-16, as some editors write it."""
    Path("docs.jsonl").write_text(json.dumps({"text": "a"}) + "\n", encoding="utf-16")


def _finished_otherwise() -> None:
    write("prepared/web/notes.txt", "mine")


CONFIGURATION = [
    _prepare("no place for the shards", "out_dir=''", key="out_dir", value="missing", remedy="directory"),
    _prepare("no source", "sources={}", key="sources", value="empty", remedy="sources.web.kind=jsonl"),
    _prepare("a source without a kind", "sources={web: {path: docs.jsonl}}", key="sources.web.kind", value="missing",
             remedy="one of hf, parquet, jsonl"),
    _prepare("a kind that there is not", "sources.web.kind=json", key="sources.web.kind", value="'json'",
             remedy="did you mean jsonl?"),
    _prepare("a setting of another kind", "sources.web.package=numpy", key="sources.web.package", value="jsonl",
             remedy="leave it out"),
    _prepare("a name that leads out of the directory", "sources={../web: {kind: jsonl, path: docs.jsonl}}",
             key="sources.../web", value="cannot be the name", remedy="use letters"),
    _prepare("a share of more than all", "val_fraction=1.5", key="val_fraction", value="1.5", remedy="below 1"),
    _prepare("a limit that is no share", "max_skipped=1.5", key="max_skipped", value="1.5", remedy="share from 0.0"),
    _prepare("a tokenizer without its file", "tokenizer={name: sp}", key="tokenizer.path", value="missing",
             remedy="read from a file"),
    _prepare("a file of a tokenizer that is not there", "tokenizer={name: sp, path: t.model}", key="tokenizer.path",
             value="t.model", remedy="correct the path"),
    _prepare("a kind of tokenizer that there is not", "tokenizer={name: gpt2}", key="tokenizer.name", value="'gpt2'",
             remedy="not one of sp, tiktoken, hf, bytes"),
    _prepare("documents in place of a SentencePiece model", "tokenizer={name: sp, path: docs.jsonl}", exit_code=3,
             key="tokenizer docs.jsonl", value="not a SentencePiece model", remedy="is it",
             words_of=r"(?<=model )\(.*\)(?=; )"),
    _prepare("an empty tokenizer.json", "tokenizer={name: hf, path: tokenizer.json}",
             make=partial(write, "tokenizer.json", "{}"), exit_code=3, key="tokenizer.json",
             value="not a tokenizer.json", remedy="copy it again", words_of=r"\(.*\)"),
    _prepare("ranks of a tokenizer with a gap", "tokenizer={name: tiktoken, path: t.model}",
             make=partial(write, "t.model", "YQ== 0\nYg== 2\n"), exit_code=3, key="t.model",
             value="not 0, 1, 2", remedy="copy it again"),
    _prepare("a directory that holds something else", make=_finished_otherwise, key="sources.web",
             value="prepared/web", remedy="choose another"),
    _prepare("the place is a file", "out_dir=docs.jsonl", key="out_dir", value="docs.jsonl",
             remedy="choose another place"),
    _prepare("Lingua's directory of all sources", "sources={web: {kind: lingua, path: lingua}}",
             make=partial(write, "lingua/web/web.chunk.00.jsonl", '{"text": "a"}\n'), key="sources.web.path",
             value="lingua", remedy="make each a source"),
]  # fmt: skip

FILES = [
    _prepare("a file that is not there", "sources.web.path=dcos.jsonl", key="sources.web.path", value="dcos.jsonl",
             remedy="correct it"),
    _prepare("an empty directory", "sources.web.path=texts", make=lambda: Path("texts").mkdir(), key="sources.web.path",
             value="texts", remedy="*.jsonl"),
    _prepare("a directory with other files", "sources.web.path=texts", make=partial(write, "texts/a.csv", "a,b\n"),
             key="sources.web.path", value="texts", remedy="*.jsonl"),
    _prepare("an empty file", make=partial(write, "docs.jsonl", b""), key="docs.jsonl", value="empty",
             remedy="leave it out", exit_code=3),
    _prepare("text as parquet", "sources.web.kind=parquet", exit_code=3, key="docs.jsonl",
             value="not a readable parquet file", remedy="correct the source's kind", words_of=r"\(.*\)"),
    _prepare("a parquet file without the column", "sources.web={kind: parquet, path: docs.parquet}",
             make=partial(_parquet, body=["a"]), key="sources.web", value="no column text or content",
             remedy="text_field"),
    _prepare("half a parquet file", "sources.web={kind: parquet, path: docs.parquet}",
             make=lambda: (_parquet(text=["a"] * 50), cut("docs.parquet")), exit_code=3, key="docs.parquet",
             value="not a readable parquet file", remedy="copy it again", words_of=r"\(.*\)"),
    _begun("half a gzip file", GZIP, make=partial(cut, "docs.jsonl.gz"), key="docs.jsonl.gz",
           value="cannot be read to its end", remedy="replace it or leave it out"),
    _begun("half a zstd file", "sources.web.path=docs.jsonl.zst", make=_zst, key="docs.jsonl.zst",
           value="cannot be read to its end", remedy="replace it or leave it out", words_of=r"\(.*\)"),
    _prepare("plain text with the name of a gzip file", GZIP, exit_code=3,
             make=lambda: shutil.copy("docs.jsonl", "docs.jsonl.gz"), key="docs.jsonl.gz",
             value="not compressed as its name says", remedy="rename it to docs.jsonl"),
    _prepare("a gzip file with the name of a plain one", make=lambda: shutil.copy("docs.jsonl.gz", "docs.jsonl"),
             exit_code=3, key="docs.jsonl", value="compressed", remedy="rename it to docs.jsonl.gz"),
    _begun("a picture as JSONL", make=partial(write, "docs.jsonl", b"\x89PNG\r\n\x1a\n\xff\xfe\0" * 20),
           key="docs.jsonl", value="invalid_utf8", remedy="max_skipped"),
    _prepare("UTF-16", make=_wide, exit_code=3, key="docs.jsonl", value="UTF-16", remedy="iconv"),
    _begun("a list of JSON objects in place of lines", make=partial(write, "docs.jsonl", '[{"text": "a"}]\n'),
           key="docs.jsonl", value="not_an_object", remedy="max_skipped"),
]  # fmt: skip

DOCUMENTS = [
    _begun("broken lines", make=partial(lines, b'{"text": "half'), key="docs.jsonl:byte", value="broken_json",
           remedy="raise max_skipped"),
    _begun("another name of the text", "max_skipped=0", make=partial(lines, {"body": "b"}), key="docs.jsonl:byte",
           value="no field text or content; there are: body", remedy="text_field"),
    _begun("a text that is a number", make=partial(lines, {"text": 7}), key="docs.jsonl:byte",
           value="wrong_type the text is int", remedy="raise max_skipped"),
    _begun("a text that is null", make=partial(lines, {"text": None}), key="docs.jsonl:byte",
           value="the text is null", remedy="raise max_skipped"),
    _begun("Latin-1 among UTF-8", make=partial(lines, '{"text": "Zürich"}'.encode("latin1")), key="docs.jsonl:byte",
           value="invalid_utf8", remedy="raise max_skipped"),
    _begun("half of a surrogate pair", make=partial(lines, b'{"text": "\\ud83d"}'), key="docs.jsonl:byte",
           value="invalid_utf8", remedy="raise max_skipped"),
    _begun("empty documents", make=partial(lines, {"text": ""}, {"text": " \n"}), key="docs.jsonl:byte",
           value="2 of 22 documents", remedy="raise max_skipped"),
    _begun("empty lines", make=partial(lines, b"", b""), key="docs.jsonl:byte", value="blank_line",
           remedy="raise max_skipped"),
    _begun("a document that is too long", "max_document_bytes=1000", make=partial(lines, {"text": "long " * 300}),
           key="docs.jsonl:byte", value="1500 bytes, max_document_bytes is 1000", remedy="raise max_skipped"),
    _begun("a line of 10 MB that never ends", "max_document_bytes=1000",
           make=partial(lines, b'{"text": "' + b"x" * 10_000_000), key="docs.jsonl:byte",
           value="more than 1054576 bytes",
           remedy="raise max_skipped"),
    _begun("nested ten thousand deep", make=partial(lines, b"[" * 10_000), key="docs.jsonl:byte", value="broken_json",
           remedy="raise max_skipped", words_of=r"(?<=broken_json ).*"),
    _begun("nothing but documents that are held out", "val_fraction=0.999", key="web", value="no training document",
           remedy="val_fraction"),
    _begun("NaN in the gzip", GZIP, make=lambda: Path("docs.jsonl.gz").write_bytes(gzip.compress(b"NaN\n" * 3)),
           key="docs.jsonl.gz:line 1", value="not_an_object", remedy="raise max_skipped"),
]  # fmt: skip

SEVERAL = [
    _prepare("three mistakes in the sources", "sources.books={kind: text, path: nowhere}",
             "tokenizer={name: sp, path: t}", "sources.web.path=dcos.jsonl",
             key="tokenizer.path", value="t does not exist", remedy="correct",
             also=("sources.books", "nowhere", "sources.web", "dcos.jsonl", "3 problems")),
]  # fmt: skip

GROUPS = {
    "Configuration of a preparation": CONFIGURATION,
    "Files of documents": FILES,
    "Documents": DOCUMENTS,
    "Several mistakes of a preparation": SEVERAL,
}
