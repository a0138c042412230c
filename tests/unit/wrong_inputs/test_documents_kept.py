"""What looks wrong in documents and is not: it arrives in the shards as it was. What is bad is counted and listed."""

import json
from pathlib import Path

import pytest

from tests.unit.data.corpus import shard_documents
from tests.unit.wrong_inputs.place import lines
from topklm.data.prepare import prepare
from topklm.data.prepare_config import PrepareConfig, PrepareTokenizerConfig
from topklm.data.sources import SourceConfig
from topklm.data.tokenizers import ByteTokenizer


def prepared(tmp_path, max_skipped=0, **source):
    """(texts that the shards hold, manifest, lines of skipped.jsonl)"""
    config = PrepareConfig(
        out_dir=str(tmp_path / "out"), sources={"web": SourceConfig(**{"kind": "jsonl", **source})}, val_fraction=0,
        tokenizer=PrepareTokenizerConfig(name="bytes"), workers=1, max_skipped=max_skipped,
    )  # fmt: skip
    manifest = prepare(config)["web"]
    tokens = shard_documents(tmp_path / "out" / "web", manifest, "train")
    skipped = (tmp_path / "out" / "web" / "skipped.jsonl").read_text().splitlines()
    return [bytes(i for i in ids if i < 256).decode() for ids in tokens], manifest, list(map(json.loads, skipped))


@pytest.mark.parametrize(
    "text",
    ["one\r\ntwo\r\n", "a\0b\0", "\ufeffa mark inside", "tabs\tand\x0bfeeds\x0c", " spaces \u00a0\u200b ", "e\u0301 é",
     "</s><s><|begin_of_text|>", "\u2028line\u2029", "\U0001f600", "x" * 10_000_000],
    ids=["CRLF", "null", "BOM", "control", "spaces", "not normalised", "special tokens", "separators", "beyond the BMP",
         "10 MB"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["jsonl", "jsonl with CRLF", "text"])
def test_text_arrives_as_it_is(tmp_path, text, kind):
    file = tmp_path / ("a.txt" if kind == "text" else "a.jsonl")
    if kind == "text":
        file.write_bytes(("." + text).encode())
        wanted = ["." + text]
    else:
        end = b"\r\n" if "CRLF" in kind else b"\n"
        file.write_bytes(end.join(json.dumps({"text": t}).encode() for t in (text, "next")) + end)
        wanted = [text, "next"]
    found, manifest, skipped = prepared(tmp_path, kind=kind.split()[0], path=str(file))
    assert found == wanted
    assert manifest.counts["train"]["bytes"] == sum(len(t.encode()) for t in wanted)
    assert manifest.skipped == {}
    assert skipped == []


def test_the_byte_tokenizer_loses_nothing():
    """On which the comparison above rests."""
    text = "".join(map(chr, [*range(0x300), 0xFFFD, 0x10FFFF]))
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


def test_bad_documents_under_the_limit_are_counted_and_listed(tmp_path):
    bad = [
        b'{"text": "half', "text", {"body": "b"}, {"text": 7, "id": "seven"}, '{"text": "Zürich"}'.encode("latin1"),
        b'{"text": "\\ud83d"}', {"text": " \n"}, b"", b"\0\0\0",
    ]  # fmt: skip
    lines(*bad, {"text": "the last"}, name=str(tmp_path / "docs.jsonl"))
    found, manifest, skipped = prepared(tmp_path, max_skipped=len(bad), path=str(tmp_path / "docs.jsonl"))
    assert len(found) == 21
    assert found[-1] == "the last"
    assert manifest.skipped == {
        "blank_line": 1, "broken_json": 2, "empty": 1, "invalid_utf8": 2, "missing_field": 1, "not_an_object": 1,
        "wrong_type": 1,
    }  # fmt: skip
    assert [each["reason"] for each in skipped] == [
        "broken_json", "not_an_object", "missing_field", "wrong_type", "invalid_utf8", "invalid_utf8", "empty",
        "blank_line", "broken_json",
    ]  # fmt: skip
    content = Path(tmp_path / "docs.jsonl").read_bytes()
    places = [int(each["location"].rpartition(" ")[2]) for each in skipped]
    assert content[places[0] :].startswith(b'{"text": "half')
    assert content[places[-1] :].startswith(b"\0\0\0")
    assert skipped[3]["id"] == "seven"
