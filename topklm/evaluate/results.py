"""The files of an evaluation: `results.json` as lm-evaluation-harness returns it, `validation.json`, and their logs.

`topklm.report.evals.read` is the reader, and describes the checks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import topklm
from topklm.errors import ConfigError
from topklm.evaluate.validation import Validation
from topklm.report.evals.read import EVALS, FORMAT_VERSION, RESULTS, VALIDATION, read_evaluation, same_model

log = logging.getLogger("topklm.evaluate")


def evals_directory(dump_dir: Path, step: int) -> Path:
    """Where the evaluation of a run's step goes, as in Meta Lingua: `evals/{step:010d}`."""
    return dump_dir / EVALS / f"{step:010d}"


def evaluation_provenance(
    run: dict[str, Any],
    *,
    step: int | None,
    alpha: float | None,
    tokenizer_sha256: str | None,
    context: int,
    bos: str,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype,
    ranks: int = 1,
    checkpoint: Path | None = None,
    checkpoint_sha256: str | None = None,
    data_fingerprint: str | None = None,
) -> dict[str, Any]:
    """Everything that decides an evaluation's figures: model, tokenizer, settings, versions, machine.

    `run` is the run's whole configuration (`LoadedConfig.run`), by which twins are recognised. `alpha` None: a dense
    model. `context`: tokens that a request may have. `bos`: the BOS policy of the requests, in words.
    `data_fingerprint`: of the data that the model was trained on; null: what the checkpoint tells.
    """
    device = torch.device(device)
    return {
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "checkpoint_sha256": checkpoint_sha256,
        "step": step,
        "alpha": alpha,
        "tokenizer_sha256": tokenizer_sha256,
        "data_fingerprint": data_fingerprint or _trained_on(checkpoint),
        "context": context,
        "bos": bos,
        "seed": seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "ranks": ranks,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "topklm": topklm.__version__,
            "torch": torch.__version__,
            "lm_eval": _version("lm_eval"),
            "python": platform.python_version(),
        },
        "run": run,
    }


def write_results(
    directory: Path,
    *,
    provenance: dict[str, Any],
    harness: dict[str, Any] | None = None,
    samples: dict[str, list[dict[str, Any]]] | None = None,
    failed: dict[str, str] | None = None,
    validation: Validation | None = None,
) -> list[Path]:
    """Write an evaluation into `directory` and read it back; returns the files written.

    `harness`: what `lm_eval.simple_evaluate` returned; it becomes `results.json`, with `provenance`, `failed` (task:
    why it could not run) and the names and hashes of the logs added. `samples`: its per-sample dictionaries by task,
    `samples_<task>.jsonl`. `validation` becomes `validation.json` and a log by document for each view. What is not
    given stays as it was in the directory, unless it is of another model. Files are made in a directory beside and then
    moved, the logs first. Raises `ConfigError` where nothing can be written.
    """
    contents: dict[str, tuple[dict[str, Any], Mapping[str, Iterable[Any]]]] = {}
    if harness is not None:
        content = {key: value for key, value in harness.items() if key != "samples"}
        contents[RESULTS] = ({**content, "failed": failed or {}}, samples or {})
    if validation is not None:
        contents[VALIDATION] = (validation.content(), validation.logs())
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".making-") as making:
            made: list[Path] = []
            for name, (content, logs) in contents.items():
                made += _make(Path(making), name, content | {"provenance": provenance}, logs)
            for path in made:
                os.replace(path, directory / path.name)
        _remove_stale(directory, provenance)
    except OSError as error:
        raise ConfigError(f"the evaluation cannot be written to {directory}: {error}") from error
    read_evaluation(directory)
    return [directory / path.name for path in made]


def _make(directory: Path, name: str, content: dict[str, Any], logs: Mapping[str, Iterable[Any]]) -> list[Path]:
    """Write one of the two JSON files and its logs; the JSON file comes last in the list."""
    files, made = {}, []
    for key, lines in logs.items():
        prefix = "samples" if name == RESULTS else "documents"
        path = directory / f"{prefix}_{re.sub(r'[^A-Za-z0-9_.+-]', '_', key)}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False, default=_plain) + "\n" for line in lines)
        files[key] = {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        made.append(path)
    path = directory / name
    whole = {"format_version": FORMAT_VERSION, **content, "files": files}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False, default=_plain) + "\n", encoding="utf-8")
    return [*made, path]


def _remove_stale(directory: Path, provenance: dict[str, Any]) -> None:
    """Remove results of another model in this directory, logs that nothing refers to any more, and what a kill left."""
    listed = set()
    for path in (directory / RESULTS, directory / VALIDATION):
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            if same_model(content.get("provenance", {}), provenance):
                listed |= {entry["name"] for entry in content["files"].values()}
            else:
                log.warning("%s is of another model than what was evaluated now, and is removed", path)
                path.unlink()
    for pattern in ("samples_*.jsonl", "documents_*.jsonl"):
        for path in directory.glob(pattern):
            if path.name not in listed:
                path.unlink()
    for leftover in directory.glob(".making-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _trained_on(checkpoint: Path | None) -> str | None:
    """The fingerprint of the data that a checkpoint directory of ours was trained on."""
    try:
        state = json.loads((Path(checkpoint or "") / "train_state_00000.json").read_text(encoding="utf-8"))
        return state["data"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain(value: Any) -> Any:
    """JSON of what the harness keeps in its results beside plain values: NumPy numbers, sets, functions, types."""
    if hasattr(value, "item"):
        return value.item()
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
