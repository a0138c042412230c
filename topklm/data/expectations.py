"""What Meta Lingua's `data` section says of documents and tokens, held against what was prepared.

Lingua tokenises while it trains, so its configuration says with what and where the documents are. Here both were
decided by `apps.prepare`; a run whose configuration says otherwise must not start.
"""

from __future__ import annotations

from pathlib import Path

from topklm.data.config import DataConfig
from topklm.data.lingua_layout import lingua_files, prepare_command
from topklm.data.shards import MANIFEST, Manifest
from topklm.data.tokenizers import load_tokenizer
from topklm.errors import ConfigError, DataError


def unprepared_lingua(config: DataConfig) -> tuple[list[str], str]:
    """(sources of `data.sources` whose directory holds Meta Lingua's JSONL files and no shards, what to do)."""
    root = Path(config.root_dir)
    found = [
        name for name in config.sources if not (root / name / MANIFEST).is_file() and lingua_files(root / name).chunks
    ]
    out = root.with_name(f"{root.name}_tokens")
    command = prepare_command(root, found, out, _settings(config))
    return found, (
        f"data.root_dir {root} holds Meta Lingua's JSONL files ({', '.join(found)}); here documents become token "
        f"shards once, before training:\n    {command}\nand train with data.root_dir={out}"
    )


def contradictions(config: DataConfig, manifests: dict[str, Manifest]) -> list[str]:
    """Where `data.tokenizer`, `add_bos` or `add_eos` are given and the prepared sources are otherwise."""
    problems = []
    for name, manifest in manifests.items():
        different = [
            f"data.{key} is {str(wanted).lower()}, it was prepared with {str(there).lower()}"
            for key, wanted, there in (
                ("add_bos", config.add_bos, manifest.add_bos),
                ("add_eos", config.add_eos, manifest.add_eos),
                ("tokenizer.name", config.tokenizer.name, manifest.tokenizer.get("name")),
            )
            if wanted is not None and wanted != there
        ]
        if not different and _is_another_file(config, manifest):
            different = [f"data.tokenizer.path {config.tokenizer.path} is not the tokenizer it was prepared with"]
        if different:
            problems.append(f"source {name}: {'; '.join(different)}; remove the key, or prepare the source again")
    return problems


def tokenizer_file_is_missing(config: DataConfig) -> bool:
    """Whether `data.tokenizer.path` is given and not there, so that it cannot be compared."""
    return config.tokenizer.path is not None and not Path(config.tokenizer.path).exists()


def _is_another_file(config: DataConfig, manifest: Manifest) -> bool:
    path, name = config.tokenizer.path, str(manifest.tokenizer.get("name"))
    if path is None or name == "bytes" or tokenizer_file_is_missing(config):
        return False
    try:
        return load_tokenizer(name, path).sha256 != manifest.tokenizer.get("sha256")
    except (ConfigError, DataError):  # no tokenizer of this kind
        return True


def _settings(config: DataConfig) -> dict[str, str]:
    """The rest of the configuration as keys of `apps.prepare`. Without a tokenizer Lingua means bytes."""
    settings: dict[str, str] = {"tokenizer.name": config.tokenizer.name or "bytes"}
    if config.tokenizer.path is not None:
        settings["tokenizer.path"] = config.tokenizer.path
    for key in ("add_bos", "add_eos"):
        if getattr(config, key) is False:
            settings[key] = "false"
    return settings
