"""The tokenizer of a preparation: opened, or trained on the training documents first."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from topklm.data.prepare_config import PrepareConfig
from topklm.data.prepare_item import write_json
from topklm.data.readers import read_item
from topklm.data.sources import Document, WorkItem
from topklm.data.split import split_of, split_rule
from topklm.data.tokenizers import SentencePieceTokenizer, Tokenizer, load_tokenizer
from topklm.data.train_tokenizer import train_sentencepiece
from topklm.errors import ConfigError, DataError

log = logging.getLogger("topklm.data")


def existing_tokenizer(config: PrepareConfig) -> Tokenizer | None:
    """The tokenizer of a configuration; None if it is to be trained (see `train_tokenizer`), and its place allows it.

    Raises `ConfigError` if it is neither there nor to be trained, if it does not fit to `tokenizer.train`, or lacks a
    BOS or EOS that is wanted, or if `tokenizer.path` cannot be written; `DataError` for a broken file.
    """
    name, path, train = config.tokenizer.name, config.tokenizer.path, config.tokenizer.train
    if train is not None and path is not None:
        file, note = Path(path), _note_path(Path(path))
        if not file.exists() or (config.overwrite and _is_ours(file, note)):
            _check_place(file)
            return None
        tokenizer = load_tokenizer(name, path)
        _check_trained(tokenizer, file, note, _settings(config), train.vocab_size)
    else:
        tokenizer = load_tokenizer(name, path)
    for key, token_id in (("add_bos", tokenizer.bos_id), ("add_eos", tokenizer.eos_id)):
        if getattr(config, key) and token_id is None:
            raise ConfigError(f"the tokenizer {path} has no {key.removeprefix('add_').upper()} token; set {key}=false")
    return tokenizer


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Where two nested dictionaries differ, as lines `a.b: was X, is Y`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{key}.{k}" if key else str(k))]
    return [] if old == new else [f"{key}: was {old!r}, is {new!r}"]


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """What a trained model depends on, besides the texts."""
    return {
        "train": asdict(config.tokenizer.train) if config.tokenizer.train else None,
        "sources": {
            name: {key: value for key, value in asdict(source).items() if value is not None}
            for name, source in config.sources.items()
        },
        "split": split_rule(config.val_fraction, config.split_salt),
        "item_bytes": config.item_bytes,
        "max_document_bytes": config.max_document_bytes,
    }


def train_tokenizer(config: PrepareConfig, items: dict[str, list[WorkItem]]) -> Tokenizer:
    """Train `tokenizer.train` on the training documents of `items` and write it to `tokenizer.path`, with its note.

    Raises `ConfigError` if there is too little text, or if some of the sources are not in `items`.
    """
    assert config.tokenizer.train is not None
    assert config.tokenizer.path is not None
    file = Path(config.tokenizer.path)
    used: dict[str, dict[str, int]] = {}
    missing = [name for name in config.sources if name not in items]
    if missing:
        raise ConfigError(
            f"tokenizer.path: {file} does not exist, and it cannot be trained again because {', '.join(missing)} "
            "is prepared already; put the file back, or prepare everything again with overwrite=true"
        )
    log.info("training a SentencePiece model of %d pieces", config.tokenizer.train.vocab_size)
    definition = train_sentencepiece(_training_texts(config, items, used), config.tokenizer.train)
    for name, n in used.items():
        log.info(
            "  on %s: %s bytes in %s training documents%s",
            name,
            f"{n['bytes']:,}",
            f"{n['documents']:,}",
            " (all of them)"
            if n["all"]
            else f" (limited by tokenizer.train.max_bytes={config.tokenizer.train.max_bytes:,})",
        )
    tokenizer = SentencePieceTokenizer(definition)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_bytes(definition)
    # A model without its own note would pass for one from elsewhere, whenever this is interrupted.
    file.unlink(missing_ok=True)
    write_json(_note_path(file), {"sha256": hashlib.sha256(definition).hexdigest(), **_settings(config), "used": used})
    os.replace(temporary, file)
    log.info("the tokenizer is %s", file)
    return tokenizer


def _training_texts(
    config: PrepareConfig, items: dict[str, list[WorkItem]], used: dict[str, dict[str, int]]
) -> Iterator[str]:
    """Documents of the training split. Each source has an equal share of the bytes; its items come in the order of
    a hash, so that a small part of a large source is not only its beginning."""
    assert config.tokenizer.train is not None
    share = config.tokenizer.train.max_bytes // len(items)
    for name, source_items in items.items():
        used[name] = {"documents": 0, "bytes": 0, "all": 1}
        mixed = sorted(source_items, key=lambda item: hashlib.sha256(f"{name}/{item.index}".encode()).digest())
        for text in _train_documents(config, name, mixed):
            size = len(text.encode())
            if used[name]["bytes"] + size > share:
                used[name]["all"] = 0
                break
            used[name]["documents"] += 1
            used[name]["bytes"] += size
            yield text


def _train_documents(config: PrepareConfig, name: str, items: list[WorkItem]) -> Iterator[str]:
    for item in items:
        for document in read_item(config.sources[name], item, config.max_document_bytes):
            if isinstance(document, Document):
                split = document.split or split_of(document.text, config.val_fraction, config.split_salt)
                if split == "train":
                    yield document.text


def _check_place(file: Path) -> None:
    """Raise `ConfigError` if `file` cannot be written, found by writing beside it; no directory is made yet."""
    place = next(parent for parent in file.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(
            f"tokenizer.path: {file} cannot be written ({place}: {error.strerror}); choose another place"
        ) from error


def _check_trained(tokenizer: Tokenizer, file: Path, note: Path, settings: dict[str, Any], vocab_size: int) -> None:
    advice = "use another tokenizer.path, set tokenizer.train=null to take it as it is, or overwrite=true"
    if note.is_file():
        try:
            recorded = json.loads(note.read_text(encoding="utf-8"))
            recorded = {key: recorded[key] for key in settings}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{note} is damaged ({error!r}); remove it and {file} to train again") from error
        different = differences(recorded, settings) if _is_ours(file, note) else []
        if different:
            lines = "\n".join(f"  - {line}" for line in different)
            raise ConfigError(f"tokenizer.path: {file} was trained with other settings:\n{lines}\n{advice}")
    if tokenizer.vocab_size != vocab_size:
        raise ConfigError(
            f"tokenizer.path: {file} has {tokenizer.vocab_size} pieces, tokenizer.train.vocab_size is {vocab_size}; "
            + advice
        )


def _is_ours(file: Path, note: Path) -> bool:
    """The model is the one that was trained here, not one that the user put in its place."""
    if not (file.is_file() and note.is_file()):
        return False
    try:
        return bool(json.loads(note.read_text("utf-8"))["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest())
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{note} is damaged ({error!r}); remove it and {file} to train again") from error


def _note_path(file: Path) -> Path:
    return file.with_name(file.name + ".json")
