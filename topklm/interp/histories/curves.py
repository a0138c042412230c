"""Identity match over training and over depth, of every series, as a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from topklm.bundles import Bundle
from topklm.errors import ConfigError, Problem
from topklm.interp.entropy.layer_means import LayerMeans
from topklm.interp.histories.config import MatchConfig
from topklm.interp.histories.identity import Match, match_profiles, rate_of
from topklm.interp.histories.series import Opened, Series, missing_checkpoints, open_series
from topklm.interp.profiles import Profiles, shared_types, token_profiles
from topklm.interp.progress import PassProgress
from topklm.report.result import Drawing, Result
from topklm.report.tracing.match import (
    Comparison,
    MatchPoint,
    depth_figure,
    looks,
    match_statements,
    match_table,
    training_figure,
)

Key = tuple[Comparison, int | None, int | None]
"""(comparison, step, step of the candidates)."""


def match_result(config: MatchConfig, shown: bool = False) -> Result:
    """Identity-match rates of all series that the configuration names. `shown`: with a progress bar.

    Raises `ConfigError`, `DataError`.
    """
    opened = open_series(config.paths, config.force)
    types = shared_types([each.bundle for each in opened.bundles], config.min_count)
    tail = tail_of(opened)
    work = sum(len(s.layers) * (len(s.everything) + 1 + (s.initial is not None)) for s in opened.series)
    with PassProgress("identity match", work, shown, unit="layers") as progress:
        seen: set[str] = set()
        points = [
            point
            for series in opened.series
            for point in _rates(series.label, _matches(series, types, config, seen, progress.advance), tail)
        ]
    if (twins := _twins(opened)) is not None:
        points += _rates(twins[0].label, _across(*twins, types, config), tail)
    if not points:
        what = "give two checkpoints of a run, or bundles of several layers"
        raise ConfigError([Problem("bundles", f"there is nothing to match in them; {what}")])
    basis = (
        f"{len(types):,} token types that occurred at least {config.min_count} times, centre {config.centre}, "
        f"{config.bins} frequency bins"
    )
    lines = [*opened.provenance(), basis]
    look = looks([(series.label, series.any.run) for series in opened.series])
    ends = sorted({each.anneal_steps for each in opened.bundles if each.is_topk} - {0})
    drawings = {}
    if (figure := training_figure(points, look, ends, lines)) is not None:
        drawings["match_training"] = Drawing(
            title="Identity match over training", figure=figure,
            text="Share of neurons whose nearest token profile at a later checkpoint is that of their own index, and "
            "the mean cosine of the two.",
        )  # fmt: skip
    if (figure := depth_figure(points, look, tail, lines)) is not None:
        drawings["match_depth"] = Drawing(
            title="Identity match with the next layer", figure=figure,
            text="Share of neurons whose nearest token profile in the next layer is that of their own index, and the "
            "mean cosine of the two; right, at initial weights, what the residual stream does by itself.",
        )  # fmt: skip
    gaps = [missing for series in opened.series if series.checkpoints and (missing := missing_checkpoints(series))]
    return Result(
        kind="identity_match",
        title="Identity match: does an index keep its meaning?",
        statements=[
            *(f"Compared by force: {warning}." for warning in opened.warnings),
            *match_statements(points, twins and (twins[0].label, twins[1].label)), *gaps,
        ],
        provenance=lines,
        tables={"identity_match": match_table(points)},
        drawings=drawings,
        data={"points": [dataclasses.asdict(point) for point in points], "types": types, "settings": vars(config)},
    )  # fmt: skip


def tail_of(opened: Opened) -> int | None:
    """First layer of the dense tail of the TopK models among them; None without one, or if they differ."""
    tails = {each.tail for each in opened.bundles if each.is_topk}
    return tails.pop() if len(tails) == 1 else None


def _twins(opened: Opened) -> tuple[Series, Series] | None:
    """The TopK model and the dense model among them, each as it is, if there is one of each."""
    plain = [s for s in opened.series if s.checkpoints and s.fixed_alpha is None and not s.any.is_control]
    sparse, dense = ([s for s in plain if s.any.is_topk == which] for which in (True, False))
    return (sparse[0], dense[0]) if len(sparse) == len(dense) == 1 else None


def _across(a: Series, b: Series, types: np.ndarray, config: MatchConfig) -> Iterator[tuple[Key, int, Match]]:
    """The newest checkpoints of two models, index by index; nothing if they are not of one width."""
    if a.last.bundle.meta.model.dim != b.last.bundle.meta.model.dim:
        return
    for layer in sorted(set(a.layers) & set(b.layers)):
        p, q = (token_profiles(s.last.bundle.layer(layer), types, centre=config.centre) for s in (a, b))
        yield ("dense twin", a.last.step, b.last.step), layer, match_profiles(p, q, config.bins)


def _rates(label: str, matched: Iterable[tuple[Key, int, Match]], tail: int | None) -> Iterator[MatchPoint]:
    """Of each layer, and of the layers before and in the dense tail together."""
    found: dict[Key, dict[int, Match]] = {}
    for key, layer, match in matched:
        found.setdefault(key, {})[layer] = match
    for (comparison, step, to_step), matches in found.items():
        about = {"series": label, "comparison": comparison, "step": step, "to_step": to_step}
        for group, layers in _groups(sorted(matches), tail, comparison):
            rate = dataclasses.asdict(rate_of([matches[layer] for layer in layers]))
            only = layers[0] if group == "layer" else None
            yield MatchPoint(**about, group=group, layer=only, **rate)  # type: ignore[arg-type]


def _groups(layers: Sequence[int], tail: int | None, comparison: Comparison) -> Iterator[tuple[str, list[int]]]:
    for layer in layers:
        yield "layer", [layer]
    # The layer whose next one is the first of the tail belongs to neither.
    first = tail if tail is not None else layers[-1] + 2
    body = [layer for layer in layers if layer + (comparison == "next layer") < first]
    if body:
        yield "body", body
    if rest := [layer for layer in layers if layer >= first]:
        yield "tail", rest


def _matches(
    series: Series, types: np.ndarray, config: MatchConfig, seen: set[str], advance: Callable[[int], None]
) -> Iterator[tuple[Key, int, Match]]:
    """One layer after the other, so that at most three layers' profiles are held at a time. `seen`: bundles whose own
    layers and halves were matched already, in another series; it grows."""

    def profiles(source: Bundle | Sequence[Bundle], layer: int) -> Profiles:
        advance(1)
        parts = [source] if isinstance(source, Bundle) else source
        return token_profiles(LayerMeans(parts, layer), types, centre=config.centre)

    last = series.last
    for layer in series.layers:
        final = profiles(last.bundle, layer)
        before: tuple[int | None, Profiles] | None = None
        for each in series.everything[:-1]:
            current = profiles(each.bundle, layer)
            yield ("last checkpoint", each.step, last.step), layer, match_profiles(current, final, config.bins)
            if before is not None:
                yield ("next checkpoint", before[0], each.step), layer, match_profiles(before[1], current, config.bins)
            before = None if each.is_initial else (each.step, current)
        if before is not None:
            yield ("next checkpoint", before[0], last.step), layer, match_profiles(before[1], final, config.bins)
        halves = [last.bundle.half(name) for name in "ab"] if last.bundle.sha256 not in seen else []
        if halves and all(halves) and (both := _both_halves(halves, types)) is not None:
            a, b = (token_profiles(LayerMeans(half, layer), both, centre=config.centre) for half in halves)
            yield ("other half", last.step, last.step), layer, match_profiles(a, b, config.bins)
    for each in [last, *([series.initial] if series.initial else [])]:
        if each.bundle.sha256 in seen:
            continue
        seen.add(each.bundle.sha256)
        above: Profiles | None = None
        for layer, following in zip(series.layers, [*series.layers[1:], None], strict=True):
            if following != layer + 1:
                above = None
                continue
            current = above if above is not None else profiles(each.bundle, layer)
            above = profiles(each.bundle, following)
            yield ("next layer", each.step, each.step), layer, match_profiles(current, above, config.bins)


def _both_halves(halves: Sequence[Sequence[Bundle]], types: np.ndarray) -> np.ndarray | None:
    """The types that occurred in both halves; None if too few."""
    counts = [np.sum([bundle.counts for bundle in half], axis=0) for half in halves]
    both = types[np.all([count[types] > 0 for count in counts], axis=0)]
    return both if len(both) > 1 else None
