"""Reading a model directory of Hugging Face, or a GGUF file: sizes, activation, weights, tokenizers.

A directory holds `config.json` beside safetensors or, in older ones, pickled weights; both are mapped into memory and
converted one tensor at a time. A GGUF file is read by transformers, which unpacks its quantised weights to fp32.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from topklm.checkpoint.integrity import read_object
from topklm.checkpoint.tensors import read_tensors
from topklm.config import build
from topklm.data import Tokenizer, load_tokenizer
from topklm.data.tokenizers import HFTokenizer
from topklm.errors import CheckpointError, ConfigError, DataError, Problem
from topklm.model import ModelConfig
from topklm.model.huggingface import config_from_hf, weights_from_hf
from topklm.optional import require
from topklm.sparsity import TopKConfig

_CONFIG = "config.json"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"
"""A name of `_WHOLE` with this at its end tells in which file each tensor is."""
_IN_ACTIVATION = re.compile(r"model\.layers\.(\d+)\.activation\.(\w+)")


@dataclass(frozen=True, kw_only=True)
class HFModel:
    """What the configuration of a Hugging Face model tells."""

    model: ModelConfig
    topk: TopKConfig | None
    """Of its section `topk`, which our exports and `sparsify` on a live object write; None for an ordinary Llama."""
    alpha: float | None
    """The alpha in that section: 1 dense ... 0 TopK."""
    raw: dict[str, Any]
    """config.json itself."""


def find_huggingface(path: Path) -> Path | None:
    """The model directory or GGUF file that `path` stands for, or None. Raises `CheckpointError` for several GGUFs."""
    if path.suffix == ".gguf" and path.is_file():
        return path
    if (path / _CONFIG).is_file() and any((path / name).is_file() for name in _weight_files_or_indices()):
        return path
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{path} holds {len(files)} GGUF files; give one of them: {names}")
    if files:
        return files[0]
    return path if (path / _CONFIG).is_file() else None


def read_hf(path: Path) -> HFModel:
    """The configuration of what `find_huggingface` gave. Raises `CheckpointError` with all that is not supported."""
    raw = _gguf_config(path) if path.is_file() else read_object(path / _CONFIG, "download or export it again")
    try:
        model = config_from_hf(raw)
        topk, alpha = _activation(raw, model)
    except ConfigError as error:
        raise CheckpointError(f"{path} is no model that can be loaded here: {error}") from error
    return HFModel(model=model, topk=topk, alpha=alpha, raw=raw)


def read_hf_weights(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The weights under our names, in the dtype of the file and mapped from it where nothing must change.

    Raises `CheckpointError` that names every tensor or file that is missing or does not fit.
    """
    try:
        stored = _gguf_weights(path) if path.is_file() else dict(_stored(path))
        return weights_from_hf({name: t for name, t in stored.items() if not _IN_ACTIVATION.fullmatch(name)}, config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_hf_activations(path: Path) -> dict[str, Tensor]:
    """Thresholds and norms of the activations in an export, under our names `layers.<i>.<name>`; often none."""
    if path.is_file():
        return {}
    matches = ((_IN_ACTIVATION.fullmatch(name), tensor) for name, tensor in _stored(path))
    return {f"layers.{m[1]}.{m[2]}": tensor for m, tensor in matches if m}


def hf_tokenizers(path: Path) -> list[Tokenizer]:
    """The tokenizers beside the weights, the one to use first; empty if there is none that can be read here."""
    if path.is_file():
        return [_gguf_tokenizer(path)]
    found = []
    if (path / "tokenizer.json").is_file():
        found.append(load_tokenizer("hf", path))
    if (file := path / "tokenizer.model").is_file():
        try:
            found.append(load_tokenizer("sp", file))
        except DataError:
            found.append(load_tokenizer("tiktoken", file))
    return found


def hf_sha256(path: Path) -> str:
    """SHA-256 of a GGUF file, or of the names and hashes of config.json and the weight files of a directory."""
    if path.is_file():
        return _sha256(path)
    files = [path / _CONFIG, *_weight_files(path)]
    return hashlib.sha256("".join(f"{file.name} {_sha256(file)}\n" for file in files).encode()).hexdigest()


def _activation(raw: Mapping[str, Any], model: ModelConfig) -> tuple[TopKConfig | None, float | None]:
    """(activation, alpha) of the section `topk`."""
    section = raw.get("topk")
    if section is None:
        if raw["model_type"] == "topk_llama":
            raise ConfigError("topk is missing, though model_type is topk_llama; restore it, or export the model again")
        return None, None
    if not isinstance(section, Mapping):
        raise ConfigError(f"topk: {section!r} is not a section (a mapping of keys to values)")
    topk = build(TopKConfig, {key: value for key, value in section.items() if key != "alpha"})
    problems = [problem.under("topk") for problem in topk.problems_for(model.dim, model.n_layers)]
    alpha: Any = section.get("alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 <= alpha <= 1:
        problems.append(Problem("topk.alpha", f"{alpha!r} is not a number between 0 (TopK) and 1 (dense)"))
    if problems:
        raise ConfigError(problems)
    return topk, float(alpha)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weight_files_or_indices() -> list[str]:
    return [name + end for name in _WHOLE for end in (_INDEX, "")]


def _weight_files(path: Path) -> list[Path]:
    """The files of the weights: safetensors before pickled ones, the parts of an index before a whole file."""
    for name in _weight_files_or_indices():
        file = path / name
        if not file.is_file():
            continue
        if not name.endswith(_INDEX):
            return [file]
        parts = read_object(file, "download or export it again").get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise CheckpointError(f"{file} has no weight_map; download or export the model again")
        names = sorted(set(map(str, parts.values())))
        if outside := [part for part in names if part != Path(part).name]:  # it came from elsewhere
            raise CheckpointError(f"{file} names a file outside of its directory, {outside[0]!r}; it is not read")
        files = [path / part for part in names]
        missing = [part.name for part in files if not part.is_file()]
        if missing:
            raise CheckpointError(
                f"{path}: {len(missing)} of {len(files)} weight files are missing: {', '.join(missing)}; download or "
                "export them again"
            )
        return files
    raise CheckpointError(
        f"{path} holds a {_CONFIG} but no weights ({', '.join(_weight_files_or_indices())}, or one GGUF)"
    )


def _stored(path: Path) -> Iterator[tuple[str, Tensor]]:
    for file in _weight_files(path):
        if file.suffix == ".safetensors":
            library = require("safetensors", "topklm[hf]")
            try:
                with library.safe_open(file, framework="pt") as tensors:
                    yield from ((name, tensors.get_tensor(name)) for name in tensors.keys())  # noqa: SIM118 - it cannot be iterated itself
            except library.SafetensorError as error:
                raise CheckpointError(f"{file} is damaged: {error}; download or export it again") from error
        else:
            content = read_tensors(file, "a state dict")
            if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
                raise CheckpointError(f"{file} holds no state dict; download it again")
            yield from content.items()


def _gguf(path: Path, what: str) -> Any:
    """What the Auto class `what` of transformers makes of a GGUF file."""
    for package in ("gguf", "accelerate", "transformers"):
        require(package, "topklm[gguf]")
    auto = getattr(require("transformers", "topklm[gguf]"), what)
    try:
        return auto.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
    except Exception as error:  # any kind, of a file from elsewhere
        raise CheckpointError(f"transformers cannot read {path}: {error}; download it again") from error


def _gguf_config(path: Path) -> dict[str, Any]:
    return _gguf(path, "AutoConfig").to_dict()


def _gguf_weights(path: Path) -> dict[str, Tensor]:
    return _gguf(path, "AutoModelForCausalLM").state_dict()


def _gguf_tokenizer(path: Path) -> Tokenizer:
    made = _gguf(path, "AutoTokenizer")
    return HFTokenizer(made.backend_tokenizer.to_str().encode(), made.bos_token_id, made.eos_token_id)
