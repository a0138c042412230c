"""`meta.json`: what a bundle holds, of which model and which tokens, and the hashes of its files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from topklm.config import build
from topklm.errors import ConfigError, DataError, Problem

FORMAT_VERSION = 1
META = "meta.json"
AGAIN = "collect it again: python -m apps.collect"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The model whose activations these are."""

    run: str
    """Name of the run."""
    path: str
    """The checkpoint that was read."""
    sha256: str | None
    """Hash of the checkpoint's contents; null for a file without `files.json`, and for initial weights."""
    step: int | None
    """Optimizer steps that the weights have seen; null if the file does not tell."""
    init: Literal["checkpoint", "random"]
    """random: not the checkpoint's weights, but the initial ones of its configuration."""
    alpha: float | None
    """The alpha that it ran with: 1 dense ... 0 TopK; null for a dense model."""
    dtype: str
    """Dtype of weights and activations."""
    dim: int
    """N, the number of neurons of each layer."""
    n_layers: int
    """Blocks of the model; the bundle may hold fewer."""
    vocab_size: int
    """V."""
    model: dict[str, Any | None]
    """Section `model` of the run's configuration."""
    topk: dict[str, Any | None] | None
    """Section `topk`; null for a dense model."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which activations of it."""

    site: Literal["post", "pre"]
    """post: the block's output, as it is in the residual stream; pre: what enters the activation (in a dense layer
    the same)."""
    read_topk: dict[str, Any | None] | None
    """k, relu, n_dense_tail of the cut that a dense model was read through, in the statistics only; null: none."""


@dataclass(frozen=True, kw_only=True)
class CorpusPart:
    """One split of one prepared source. Positions of tokens count through the parts in their order."""

    source: str
    """Name of the source."""
    split: Literal["train", "val"]
    """Which of its splits."""
    n_tokens: int
    """All tokens of it, whether they were read or not."""
    fingerprint: str
    """sha256 of the source's tokens and tokenizer (`Manifest.fingerprint`)."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The tokens that windows were taken from, and how. Together with `Meta.windows_sha256`: exactly which."""

    parts: list[CorpusPart]
    """Source by source."""
    tokenizer_sha256: str
    """Hash of the tokenizer."""
    tokenizer_name: str
    """Kind of the tokenizer."""
    context: int
    """Tokens in a window; each window is one sequence of its own for the model."""
    document_mask: bool
    """Whether attention stayed inside a document."""
    choice: str
    """How the windows were chosen, in words."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the statistics beside the activations."""

    near_miss: float
    """A near miss is a pre-activation less than this times |cut| below the cut."""
    top_contexts: int
    """Top contexts kept per neuron."""
    sample_contexts: int
    """Contexts sampled per neuron and power of two of the activation."""
    positive_part: bool
    """Whether dense layers have the table `positive`."""
    token_fired: bool
    """Whether there is the table `fired`."""


@dataclass(frozen=True, kw_only=True)
class PartMeta:
    """A part of a bundle, a bundle itself in `parts/NAME`. The parts are disjoint and add up to the whole."""

    name: str
    """Name of its directory."""
    snapshot: int
    """Parts up to snapshot i, merged, are the bundle at the i-th of the corpus sizes that were asked for."""
    half: Literal["a", "b"] | None
    """Which half of the windows; null if they were not halved."""
    n_tokens: int
    """Tokens of this part."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What made it, none of which should change it but by rounding."""

    topklm: str
    torch: str
    device: str
    world_size: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Meta:
    """All that `meta.json` says."""

    format_version: int = FORMAT_VERSION
    """`FORMAT_VERSION` of the program that wrote it."""
    model: ModelSource
    """Whose activations."""
    reading: Reading
    """Which activations."""
    corpus: Corpus
    """On which text."""
    settings: Settings
    """Which statistics."""
    n_tokens: int
    """Tokens that were counted."""
    n_windows: int
    """Windows of `corpus.context` tokens that they came in."""
    windows_sha256: str
    """Hash of the windows' positions: equal for bundles over the same tokens of the same corpus."""
    layers: dict[str, Literal["topk", "dense"]]
    """Layers in the bundle, counted from 0. topk: what was read is zero but for a few entries; dense: any numbers
    (also a TopK layer at alpha > 0, and before the cut)."""
    parts: list[PartMeta] = field(default_factory=list)
    """Parts in `parts/`; empty: it is not divided."""
    made: list[Made]
    """By what; several if it was merged of different ones."""
    checks: dict[str, Any | None] = field(default_factory=dict)
    """Share of selections that came out otherwise in another batch shape or dtype."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Size and SHA-256 of every other file of this directory, parts apart."""

    def problems(self) -> Iterator[Problem]:
        for key, names in (("files", list(self.files)), ("parts", [part.name for part in self.parts])):
            for name in names:
                if Path(name).name != name:  # a bundle may come from elsewhere
                    yield Problem(key, f"{name!r} is no name of a file in this directory")

    def differences(self, other: Meta) -> list[str]:
        """Why the two do not merge, apart from tokens that both have; empty if they do."""
        found = []
        for section in ("model", "reading", "corpus", "settings", "layers"):
            a, b = (dataclasses.asdict(self)[section], dataclasses.asdict(other)[section])
            found += [
                f"{section}.{key}: {a.get(key)} and {b.get(key)}" for key in sorted(a | b) if a.get(key) != b.get(key)
            ]
        return found


def write_meta(directory: Path, meta: Meta) -> None:
    """Write `meta.json`, with a hash of itself, and make it durable."""
    content = dataclasses.asdict(meta)
    content["sha256"] = _sha256(content)
    with open(directory / META, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def read_meta(directory: Path) -> tuple[Meta, str]:
    """(meta, its SHA-256, which stands for the whole bundle). Raises `DataError` if it is missing, broken or newer."""
    path = directory / META
    if not path.is_file():
        unfinished = directory.with_name(f"{directory.name}.tmp").is_dir()
        why = "its collection is not finished; start the same command again" if unfinished else f"{META} is missing"
        raise DataError(f"{directory} is not a bundle ({why}); python -m apps.collect makes one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {version}, this program reads {FORMAT_VERSION}; "
                + ("update topklm" if version > FORMAT_VERSION else AGAIN)
            )
        sha256 = content.pop("sha256")
        if sha256 != _sha256(content):
            raise ValueError("it was changed: its hash does not fit")
        return build(Meta, content), sha256
    except (ConfigError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); {AGAIN}") from error


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
