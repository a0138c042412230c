"""Bundles as series: one model over its checkpoints, read in one way."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from topklm.bundles import NamedBundle, bundles_in, incomparable, open_bundle
from topklm.bundles.named import named
from topklm.checkpoint import list_checkpoints
from topklm.errors import ConfigError, DataError, Problem

log = logging.getLogger("topklm.interp")


@dataclass(frozen=True, kw_only=True)
class Series:
    """The bundles of one run, read in one way, by step."""

    label: str
    """What it is called in figures."""
    checkpoints: list[NamedBundle]
    """One a step, ascending; empty if there are initial weights alone."""
    fixed_alpha: float | None = None
    """The alpha that all of it was read at, where it is not the checkpoints' own."""
    initial: NamedBundle | None = None
    """The same model with its initial weights, read the same way: a control."""

    @property
    def any(self) -> NamedBundle:
        """One of its bundles, for what they share."""
        return self.checkpoints[-1] if self.checkpoints else self.everything[0]

    @property
    def everything(self) -> list[NamedBundle]:
        """Its bundles, the initial weights first."""
        return [*([self.initial] if self.initial else []), *self.checkpoints]

    @property
    def layers(self) -> list[int]:
        """The layers that all of its bundles have."""
        return sorted(set.intersection(*(set(each.bundle.layers) for each in self.everything)))

    @property
    def last(self) -> NamedBundle:
        """The bundle of the newest checkpoint, else of the initial weights."""
        return self.everything[-1]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a command line named."""

    series: list[Series]
    """In the order in which runs were named: at own alpha, at fixed ones, then through a cut."""
    warnings: list[str] = field(default_factory=list)
    """What speaks against comparing them, by force."""

    @property
    def bundles(self) -> list[NamedBundle]:
        """Each bundle once."""
        return list({id(each): each for series in self.series for each in series.everything}.values())

    def provenance(self) -> list[str]:
        """A line a series: run, steps and hashes of the bundles, tokens, tokenizer."""
        return [_provenance(series) for series in self.series]


def open_series(paths: Sequence[str], force: bool = False) -> Opened:
    """Open bundles and put them into series. Raises `ConfigError` with every problem: what is no bundle, and, unless
    `force`, why they do not compare."""
    problems: list[Problem] = []
    found: dict[tuple[object, ...], NamedBundle] = {}
    for path in map(Path, paths):
        if not path.exists():
            advice = "python -m apps.collect ckpt=RUN ckpts=all makes bundles of all checkpoints of a run"
            problems.append(Problem("bundles", f"{path} is not there; {advice}"))
            continue
        for directory in bundles_in(path):
            try:
                bundle = open_bundle(directory)
                each = NamedBundle(bundle=bundle, name=bundle.meta.model.run)
                if each.step is None and not each.is_initial:
                    told = f"{directory} does not say at which step its weights are, so it has no place in a history"
                    problems.append(Problem("bundles", told))
                found.setdefault(each.identity, each)
            except DataError as error:
                problems.append(Problem("bundles", str(error)))
    if problems:
        raise ConfigError(problems)
    bundles = named(list(found.values()))
    warnings = incomparable([each.bundle for each in bundles])
    if warnings and not force:
        advice = "give those that belong together, or compare them all the same with force=true"
        raise ConfigError([Problem("bundles", f"{reason}; {advice}") for reason in warnings])
    for reason in warnings:
        log.warning("%s: they do not compare", reason)
    return Opened(series=_series(bundles), warnings=warnings)


def missing_checkpoints(series: Series) -> str | None:
    """Which of the run's checkpoints have no bundle in a series, and how to make them; None if none or if the run is
    not here."""
    last = series.any
    meta, run = last.bundle.meta, Path(last.run)
    there = {int(path.name) for path in list_checkpoints(run / "checkpoints")}
    steps = sorted(there - {each.step for each in series.checkpoints})
    if not steps:
        return None
    splits = {part.split for part in meta.corpus.parts}
    words = [
        f"ckpt={run}", f"ckpts=[{','.join(map(str, steps))}]", f"tokens={meta.n_tokens}",
        f"split={splits.pop() if len(splits) == 1 else 'all'}", f"context={meta.corpus.context}",
        f"out={last.bundle.path.parent}",
    ]  # fmt: skip
    if series.fixed_alpha is not None:
        words.append(f"alpha={series.fixed_alpha:g}")
    if last.cut is not None:
        cut = ", ".join(f"{key}: {str(value).lower()}" for key, value in last.cut.items())
        words.append(f"'read_topk={{{cut}}}'")
    return (
        f"{series.label}: no bundle of step {', '.join(f'{step:,}' for step in steps)}; collect with: "
        f"python -m apps.collect {' '.join(words)}"
    )


def _series(bundles: Sequence[NamedBundle]) -> list[Series]:
    found: list[Series] = []
    groups: dict[tuple[str, str], list[NamedBundle]] = {}
    for each in bundles:
        groups.setdefault((each.run, str(each.bundle.meta.reading)), []).append(each)
    runs = list(dict.fromkeys(each.run for each in bundles))
    order = sorted(groups, key=lambda key: (runs.index(key[0]), groups[key][0].cut is not None))
    for key in order:
        group = groups[key]
        initial = next((each for each in group if each.is_initial), None)
        trained = sorted((each for each in group if not each.is_initial), key=lambda each: each.step or 0)
        own = [each for each in trained if each.at_own_alpha]
        if own or not trained:
            base = own[-1] if own else group[0]
            label = base.label.replace(", at random initialisation", "")
            found.append(Series(label=label, checkpoints=own, initial=initial))
        for alpha in sorted({each.alpha for each in trained if not each.at_own_alpha and each.alpha is not None}):
            fixed = [each for each in trained if each.alpha == alpha]
            label = next(each.label for each in fixed if not each.at_own_alpha)
            found.append(Series(label=label, checkpoints=fixed, fixed_alpha=alpha, initial=initial))
    return found


def _provenance(series: Series) -> str:
    first = series.any.bundle.meta
    steps = ", ".join(
        f"{'initial weights' if each.is_initial else f'{each.step:,}' if each.step is not None else '?'} "
        f"({f'alpha {each.alpha:g}, ' if each.alpha else ''}{each.bundle.sha256[:12]})"
        for each in series.everything
    )
    sources = ", ".join(f"{part.source}/{part.split}" for part in first.corpus.parts)
    return (
        f"{series.label}: {series.any.run}, {first.n_tokens:,} tokens of {sources}, tokenizer "
        f"{first.corpus.tokenizer_sha256[:12]}; steps (bundles) {steps}"
    )
