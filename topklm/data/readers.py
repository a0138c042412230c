"""Reading the documents of one work item. Everything that is not a good document is reported, never dropped."""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from topklm.data.sources import BadDocument, Document, SourceConfig, WorkItem, file_part, package_directory
from topklm.errors import ConfigError, DataError
from topklm.optional import require

log = logging.getLogger("topklm.data")

Read = Iterator[Document | BadDocument]

_BATCH_ROWS = 256
_DISCARD_BYTES = 1 << 20
_BOM = codecs.BOM_UTF8


def read_item(config: SourceConfig, item: WorkItem, max_document_bytes: int) -> Read:
    """The documents of a work item, in order, good and bad.

    Raises `DataError` if a file as a whole cannot be read (missing, changed since the plan, truncated): how many
    documents it held is not known then, so it cannot count as one that is skipped.
    """
    for part in item.parts:
        if config.kind == "hf":
            yield from _read_hf(config, part, max_document_bytes)
            continue
        file = Path(part["file"])
        try:
            if any(part[key] != value for key, value in file_part(file).items()):
                raise DataError(f"{file} has changed since the preparation began; start again with overwrite=true")
            if config.kind == "parquet":
                yield from _read_parquet(config, part, max_document_bytes)
            elif config.kind in ("jsonl", "lingua"):
                documents = _read_jsonl(config, part, max_document_bytes)
                yield from _in_split(documents, part["split"]) if "split" in part else documents
            else:
                yield _read_text(config, file, max_document_bytes)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file} cannot be read to its end ({error}); replace it or leave it out") from error


def check_document(text: object, id: object, location: str, max_document_bytes: int) -> Document | BadDocument:
    """A document if `text` is one: text that UTF-8 can write, not only white space, not too long."""
    name = None if id is None else str(id)
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        return BadDocument(name, location, "wrong_type", f"the text is {kind}, not text")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        return BadDocument(name, location, "invalid_utf8", str(error))
    if not text.strip():
        return BadDocument(name, location, "empty", f"{size} bytes of white space")
    if size > max_document_bytes:
        return BadDocument(name, location, "too_long", f"{size} bytes, max_document_bytes is {max_document_bytes}")
    return Document(text, name, location)


def _check_record(record: Mapping[str, Any], config: SourceConfig, where: str, limit: int) -> Document | BadDocument:
    name = record.get(config.id_field or "id")
    for field in config.text_fields:
        if field in record:
            return check_document(record[field], name, where, limit)
    missing = " or ".join(config.text_fields)
    detail = f"no field {missing}; there are: {', '.join(itertools.islice(record, 10))}"
    return BadDocument(None if name is None else str(name), where, "missing_field", detail)


def _check_bytes(raw: bytes, name: str | None, location: str, limit: int) -> Document | BadDocument:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadDocument(name, location, "invalid_utf8", str(error))
    return check_document(text, name, location, limit)


# Text files


def _read_text(config: SourceConfig, file: Path, limit: int) -> Document | BadDocument:
    if config.kind == "package":
        root = package_directory(config.package or "")
        location = f"{config.package}:{file.relative_to(root).as_posix()}"
    else:
        location = str(file)
    if (size := file.stat().st_size) > limit + len(_BOM):  # before it is read
        return BadDocument(file.name, location, "too_long", f"{size} bytes, max_document_bytes is {limit}")
    return _check_bytes(file.read_bytes().removeprefix(_BOM), file.name, location, limit)


# JSONL


def _read_jsonl(config: SourceConfig, part: dict[str, Any], limit: int) -> Read:
    file = Path(part["file"])
    if file.suffix == ".gz":
        with gzip.open(file, "rb") as stream:
            yield from _records(_numbered(stream, limit, f"{file}:line "), config, limit, from_start=True)
    elif file.suffix == ".zst":
        with _open_zst(file) as stream:
            yield from _records(_numbered(stream, limit, f"{file}:line "), config, limit, from_start=True)
    else:
        with open(file, "rb") as stream:
            lines = lines_of_range(stream, part["start"], part["end"], line_limit(limit))
            located = ((f"{file}:byte {at}", line) for at, line in lines)
            yield from _records(located, config, limit, from_start=part["start"] == 0)


def line_limit(max_document_bytes: int) -> int:
    """Longest line that is read: JSON may spell a byte with six, and a line has other fields as well."""
    return 6 * max_document_bytes + (1 << 20)


def lines_of_range(stream: BinaryIO, start: int, end: int, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """(offset, line) of each line whose first byte is in [start, end): every line belongs to exactly one range.

    A line of `limit` bytes or more is None: it is passed over in small pieces, so memory stays bounded.
    """
    if start:
        stream.seek(start - 1)
        _skip_line(stream)  # the rest of a line that began before, or the line end right before `start`
    while (at := stream.tell()) < end:
        line = stream.readline(limit)
        if not line:
            return
        if len(line) == limit and not line.endswith(b"\n"):
            _skip_line(stream)
            yield at, None
        else:
            yield at, line


def _numbered(stream: Any, limit: int, prefix: str) -> Iterator[tuple[str, bytes | None]]:
    limit = line_limit(limit)
    for number in itertools.count(1):
        line = stream.readline(limit)
        if not line:
            return
        if len(line) == limit and not line.endswith(b"\n"):
            _skip_line(stream)
            yield f"{prefix}{number}", None
        else:
            yield f"{prefix}{number}", line


def _skip_line(stream: Any) -> None:
    while (more := stream.readline(_DISCARD_BYTES)) and not more.endswith(b"\n"):
        pass


def _records(lines: Iterable[tuple[str, bytes | None]], config: SourceConfig, limit: int, *, from_start: bool) -> Read:
    for i, (where, line) in enumerate(lines):
        if line is None:
            yield BadDocument(None, where, "too_long", f"the line has more than {line_limit(limit)} bytes")
            continue
        if from_start and i == 0:
            line = line.removeprefix(_BOM)
        if not line.strip():
            yield BadDocument(None, where, "blank_line", "")
            continue
        try:
            # `json.loads(bytes)` would accept surrogates that UTF-8 forbids.
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield BadDocument(None, where, "invalid_utf8", str(error))
        except (ValueError, RecursionError) as error:
            yield BadDocument(None, where, "broken_json", str(error))
        else:
            if isinstance(record, dict):
                yield _check_record(record, config, where, limit)
            else:
                yield BadDocument(None, where, "not_an_object", f"the line is {type(record).__name__}")


def _in_split(documents: Read, split: Literal["train", "val"]) -> Read:
    for document in documents:
        yield replace(document, split=split) if isinstance(document, Document) else document


def _open_zst(file: Path) -> Any:
    pyarrow = require("pyarrow", "topklm[data]")
    # The package zstandard takes a truncated file for a complete one; this reader raises OSError.
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(file)), "zstd"))


# Parquet


def parquet_parts(config: SourceConfig, files: Iterable[Path]) -> Iterator[tuple[dict[str, Any], int]]:
    """Each row group of each file, with its uncompressed size."""
    parquet = require("pyarrow.parquet", "topklm[data]")
    for file in files:
        try:
            meta = parquet.read_metadata(file)
            names = meta.schema.to_arrow_schema().names
            named = file_part(file)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file} is not a readable parquet file ({error}); copy it again, or correct the source's kind"
            ) from error
        if not any(field in names for field in config.text_fields):
            raise ConfigError(
                f"{file} has no column {' or '.join(config.text_fields)}; set text_field to one of {', '.join(names)}"
            )
        if not meta.num_rows:
            log.warning("%s has no rows", file)
        for group in range(meta.num_row_groups):
            yield {**named, "row_group": group}, meta.row_group(group).total_byte_size


def _read_parquet(config: SourceConfig, part: dict[str, Any], limit: int) -> Read:
    parquet = require("pyarrow.parquet", "topklm[data]")
    where = f"{part['file']}:row group {part['row_group']}, row "
    with parquet.ParquetFile(part["file"]) as file:
        names = file.schema_arrow.names
        text_field = next(field for field in config.text_fields if field in names)
        id_field = config.id_field or "id"
        columns = [name for name in (text_field, id_field) if name in names]
        batches = file.iter_batches(_BATCH_ROWS, row_groups=[part["row_group"]], columns=columns)
        row = itertools.count()
        for batch in batches:
            texts = _raw_texts(batch.column(text_field))
            ids = batch.column(id_field).to_pylist() if id_field in names else [None] * len(texts)
            for text, name in zip(texts, ids, strict=True):
                location = f"{where}{next(row)}"
                if isinstance(text, bytes):
                    yield _check_bytes(text, None if name is None else str(name), location, limit)
                else:
                    yield check_document(text, name, location, limit)


def _raw_texts(column: Any) -> list[Any]:
    """Values of a column, text as bytes: it may claim to be UTF-8 and not be, and one such row must not stop all."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


# Hugging Face datasets


def hf_shards(config: SourceConfig) -> int:
    """Number of shards (mostly files) of a streamed dataset. Raises `ConfigError` if it cannot be opened."""
    return int(_open_hf(config).num_shards)


def _open_hf(config: SourceConfig) -> Any:
    datasets = require("datasets", "topklm[hub]")
    try:
        return datasets.load_dataset(
            config.path,
            config.name,
            split=config.hf_split or "train",
            revision=config.revision,
            data_files=config.data_files,
            streaming=True,
        )
    except Exception as error:  # unknown name, split or file, no network: the library has no common base for them
        raise ConfigError(
            f"the dataset {config.path} cannot be opened ({type(error).__name__}: {error}); check path, name, "
            "hf_split and data_files, and the network; local files are read by the kinds jsonl and parquet"
        ) from error


def _read_hf(config: SourceConfig, part: dict[str, Any], limit: int) -> Read:
    dataset = _open_hf(config)
    if dataset.num_shards != part["of"]:
        raise DataError(
            f"{config.path} has {dataset.num_shards} shards now, {part['of']} when the preparation began; "
            "set revision to a commit and start again with overwrite=true"
        )
    rows = iter(dataset.shard(num_shards=part["of"], index=part["shard"]))
    for number in itertools.count():
        where = f"{config.path}:shard {part['shard']}, row {number}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # network, decoding: the library has no common base for them
            raise DataError(
                f"{where} cannot be read ({type(error).__name__}: {error}); run again to go on from the last "
                "finished shard, or download the files and use the kind parquet or jsonl"
            ) from error
        yield _check_record(row, config, where, limit)
