"""What a configuration compares: opened, sorted into series, and checked before anything expensive."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from topklm.bundles import Bundle, open_bundles
from topklm.checkpoint.load import read_description
from topklm.errors import CheckpointError, ConfigError, Problem
from topklm.interp.consistency.config import HUNGARIAN_WIDTH, ConsistencyConfig
from topklm.interp.consistency.dictionary import (
    Dictionary,
    checkpoint_of,
    embedding_dictionary,
    profile_ceiling,
    profile_dictionary,
    read_matrix,
    row_dictionary,
    unembedding_dictionary,
)
from topklm.interp.consistency.null import frequency_bins
from topklm.interp.consistency.series import Series, Source, reasons_against, series_of
from topklm.interp.profiles import shared_types
from topklm.optional import require

log = logging.getLogger("topklm.interp")
WORDS = {"profiles": "token profiles", "embedding": "embedding columns", "unembedding": "unembedding columns"}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is compared, and over which coordinates."""

    config: ConsistencyConfig
    series: list[Series]
    types: np.ndarray
    """int64 [d] token types that stand for the coordinates; empty for files."""
    bins: np.ndarray
    """int64 [d] the frequency bin of each coordinate; one bin for files, whose coordinates have no frequency."""
    full: bool
    """Whether Hungarian matchings are computed."""
    warnings: list[str]
    """Why the bundles do not compare, where that was forced, and runs that differ in more than their seeds."""

    def layers(self, series: Series) -> list[int | None]:
        """The layers of a series that are compared; None alone where a dictionary is of no layer."""
        config, bundle = self.config, series.sources[0].bundle
        if bundle is None or "profiles" not in (config.dictionary, config.second):
            return [None]
        return [*(config.layers or bundle.layers)]

    @property
    def n_comparisons(self) -> int:
        """Pairs of runs, layer by layer."""
        return sum(len(self.layers(series)) * len(series.pairs) for series in self.series)

    @property
    def words(self) -> str:
        """What the dictionaries are."""
        config = self.config
        if config.files:
            return "the matrices of files" if config.array is None else config.array
        return WORDS[config.dictionary]

    def provenance(self) -> list[str]:
        """A line per series and one of the settings."""
        config, lines = self.config, []
        for series in self.series:
            keys = ", ".join(f"{source.name} {source.key[:12]}" for source in series.sources)
            bundle = series.sources[0].bundle
            step = "" if bundle is None or series.is_initial else f", step {bundle.meta.model.step}"
            lines.append(f"{series.label}{step}: {keys}")
        basis = [f"{len(self.bins):,} coordinates"]
        if len(self.types):
            bundle = self.series[0].sources[0].bundle
            tokens = "" if bundle is None else f" of {bundle.n_tokens:,} tokens"
            basis = [f"{len(self.types):,} token types with at least {config.min_count} occurrences{tokens}"]
            basis += [f"centred: {config.centre}"] if "profiles" in (config.dictionary, config.second) else []
        basis += [f"second dictionary: {config.second}"] if self.second else []
        basis += [
            "Hungarian matching" if self.full else "mutual nearest neighbours",
            f"{config.null_draws} draws of each null",
        ]
        lines.append(f"{self.words}: {', '.join(basis)}, seed {config.seed}")
        return lines

    @property
    def second(self) -> bool:
        """Whether there is a second dictionary."""
        return self.config.second is not None

    def dictionary(self, source: Source, layer: int | None, second: bool = False) -> Dictionary:
        """The first or the second dictionary of a run. Raises `DataError`, `CheckpointError`, `ConfigError`."""
        config, bundle = self.config, source.bundle
        if bundle is None:
            array = config.second if second else config.array
            return row_dictionary(read_matrix(Path(source.name), array, config.transpose))
        kind = config.second if second else config.dictionary
        if kind == "profiles" and layer is not None:
            return profile_dictionary(bundle.layer(layer), self.types, config.centre)
        return (embedding_dictionary if kind == "embedding" else unembedding_dictionary)(bundle, self.types)

    def ceiling(self, source: Source, layer: int | None) -> float:
        """What the profiles of a run have in common with themselves (`profile_ceiling`); NaN where it is not known."""
        if source.bundle is None or layer is None or self.config.dictionary != "profiles":
            return float("nan")
        return profile_ceiling(source.bundle, layer, self.types, self.config.centre)


def open_inputs(config: ConsistencyConfig) -> Inputs:
    """Open and check everything. Raises `ConfigError` with all problems, `DataError` for what cannot be compared."""
    return _open_files(config) if config.files else _open_bundles(config)


def _open_bundles(config: ConsistencyConfig) -> Inputs:
    bundles, problems = open_bundles(config.bundles, "bundles")
    problems += [problem for bundle in bundles for problem in _unfit(config, bundle)]
    series, alone = series_of(bundles)
    problems += alone
    reasons = reasons_against(series)
    if reasons and not config.force:
        advice = "compare bundles of the same tokens, or go on all the same with force=true"
        problems += [Problem("bundles", f"{reason}; {advice}") for reason in reasons]
    if len({bundle.meta.corpus.tokenizer_sha256 for bundle in bundles}) > 1:
        problems.append(Problem("bundles", "their tokenizers differ: token types are no shared coordinates"))
    full = _full(config, [bundle.meta.model.dim for bundle in bundles], problems)
    if problems:
        raise ConfigError(problems)
    types = shared_types(bundles, config.min_count)
    counts = np.min([bundle.counts[types] for bundle in bundles], axis=0)
    warnings = [f"{reason}: their consistencies do not compare" for reason in reasons]
    warnings += [told for each in series if not each.is_initial for told in _trained_otherwise(each)]
    for told in warnings:
        log.warning("%s", told)
    return Inputs(config=config, series=series, types=types, bins=frequency_bins(counts), full=full, warnings=warnings)


def _trained_otherwise(series: Series) -> list[str]:
    """Which runs of a series differ in more than their seeds, as far as their checkpoints are there to tell it: bundles
    know models, not their training."""
    known = []
    for source in series.sources:
        with suppress(CheckpointError):
            if source.bundle is not None:
                known.append((source.name, _training(read_description(checkpoint_of(source.bundle))[2])))
    found = []
    for name, other in known[1:]:
        first = known[0][1]
        keys = [f"{key} ({first.get(key)} and {other.get(key)})" for key in sorted(first | other)
                if first.get(key) != other.get(key)]  # fmt: skip
        if keys:
            found.append(
                f"{series.label}: {known[0][0]} and {name} were trained with other {', '.join(keys)}: what they differ "
                "in is not their seeds' alone"
            )
    return found


def _training(run: dict[str, Any]) -> dict[str, Any]:
    """What of a run's configuration decides the training beside model and seeds."""
    data = run.get("data") or {}
    found = {f"data.{key}": data.get(key) for key in ("global_batch_size", "seq_len", "sources", "add_bos", "add_eos")}
    found |= {f"optim.{key}": value for key, value in (run.get("optim") or {}).items()}
    return found | {key: run.get(key) for key in ("steps", "init_from")}


def _open_files(config: ConsistencyConfig) -> Inputs:
    problems: list[Problem] = []
    sources, shapes = [], []
    for path in config.files:
        try:
            found = [read_matrix(Path(path), config.array, config.transpose)]
            if config.second is not None:
                found.append(read_matrix(Path(path), config.second, config.transpose))
        except ConfigError as error:
            problems += error.problems
            continue
        if len({matrix.shape for matrix in found}) > 1:
            told = f"{path}: {config.second} is {list(found[1].shape)}, the first array {list(found[0].shape)}"
            problems.append(Problem("second", told))
        shapes.append(found[0].shape)
        key = hashlib.sha256(b"".join(np.ascontiguousarray(matrix).tobytes() for matrix in found)).hexdigest()
        sources.append(Source(name=path, key=key, bundle=None))
    for a, b in itertools.combinations(sources, 2):
        if a.key == b.key:
            problems.append(Problem("files", f"{a.name} and {b.name} hold the same matrix; leave one out"))
    if len({d for _, d in shapes}) > 1:
        told = ", ".join(f"{list(shape)}" for shape in shapes)
        problems.append(Problem("files", f"the matrices are {told}: [m, d] with one d; transpose=true reads [d, m]"))
    full = _full(config, [m for m, _ in shapes], problems)
    if problems:
        raise ConfigError(problems)
    pairs = list(itertools.combinations(range(len(sources)), 2))
    label = "files" if config.array is None else config.array
    return Inputs(
        config=config, series=[Series(label=label, sources=sources, pairs=pairs)], types=np.zeros(0, np.int64),
        bins=np.zeros(shapes[0][1], np.int64), full=full, warnings=[],
    )  # fmt: skip


def _full(config: ConsistencyConfig, widths: Sequence[int], problems: list[Problem]) -> bool:
    """Whether to compute Hungarian matchings; adds a problem if scipy is missing, of which the intervals are too."""
    try:
        require("scipy.optimize", "topklm[interp]")
    except ConfigError as error:
        problems += error.problems
    return max(widths, default=0) <= HUNGARIAN_WIDTH if config.hungarian is None else config.hungarian


def _unfit(config: ConsistencyConfig, bundle: Bundle) -> list[Problem]:
    found = []
    if absent := [layer for layer in config.layers or [] if layer not in bundle.layers]:
        has = ", ".join(map(str, bundle.layers))
        found.append(Problem("layers", f"{bundle.path} has no {', '.join(map(str, absent))}; it has {has}"))
    if "unembedding" in (config.dictionary, config.second) and bundle.meta.model.init != "random":
        try:
            checkpoint_of(bundle)
        except CheckpointError as error:
            found.append(Problem("dictionary", str(error)))
    return found
