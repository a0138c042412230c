"""What stood before and after the documents that a model was trained on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from topklm.data import read_manifest
from topklm.errors import DataError

log = logging.getLogger("topklm.checkpoint")


def trained_with(run: dict[str, Any], path: Path | None) -> tuple[bool | None, bool | None]:
    """(whether training documents began with BOS, whether they ended with EOS); None where nothing tells.

    From `tokenizer_config.json` in the directory `path` of a Hugging Face model; else from `data.add_bos` and
    `data.add_eos` of the run's configuration, else from the manifests of its prepared data.
    """
    if path is not None and (path / "tokenizer_config.json").is_file():
        stated = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8")).get("add_bos_token")
        return (stated if isinstance(stated, bool) else None), None
    data = run.get("data") or {}
    bos, eos = data.get("add_bos"), data.get("add_eos")
    if bos is not None or eos is not None:  # null: as it was prepared
        return bool(bos), bool(eos)
    manifests = []
    for name in data.get("sources") or {}:
        try:
            manifests.append(read_manifest(Path(data.get("root_dir") or "") / name))
        except DataError as error:
            log.debug("%s", error)
    if not manifests:
        return None, None
    return any(m.add_bos for m in manifests), any(m.add_eos for m in manifests)
