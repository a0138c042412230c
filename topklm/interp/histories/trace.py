"""One dimension and one token through the layers and checkpoints of a run, as a result (the paper's Fig. 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from topklm.bundles import Bundle, NamedBundle
from topklm.errors import ConfigError, Problem
from topklm.interp.histories.config import TraceConfig
from topklm.interp.histories.find import Strengths, find_token, layer_strengths, strengths, token_means
from topklm.interp.histories.series import Opened, Series, missing_checkpoints, open_series
from topklm.interp.profiles import shared_types
from topklm.interp.progress import PassProgress
from topklm.report.result import Drawing, Result
from topklm.report.table import Table
from topklm.report.tracing.history import (
    History,
    candidate_table,
    emergence_table,
    history_figure,
    history_statements,
)


def trace_result(config: TraceConfig, shown: bool = False) -> Result:
    """The history that the configuration asks for. `shown`: with a progress bar.

    Raises `ConfigError` (several runs, no such token or dimension, a token that is too rare), `DataError`.
    """
    opened = open_series(config.paths, config.force)
    series = _followed(opened)
    last = series[0].last
    types = shared_types([each.bundle for each in opened.bundles], config.min_count)
    subject = _subject(config, last, types)
    token, neuron, found = subject.token, subject.neuron, subject.strengths
    work = sum(len(each.layers) * len(each.checkpoints) for each in series)
    with PassProgress("trace", work, shown, unit="layers") as progress:
        histories = [_history(each, token, neuron, types, progress.advance) for each in series]
    text = subject.text
    statements = [*(f"Compared by force: {warning}." for warning in opened.warnings), *subject.statements]
    for history in histories:
        statements += history_statements(history, text, neuron, config.threshold)
    statements += [missing for each in series if (missing := missing_checkpoints(each))]
    tables = {"emergence": emergence_table(histories, config.threshold), "candidates": subject.candidates}
    lines = [
        *(line for line, each in zip(opened.provenance(), opened.series, strict=True) if each in series),
        f"{len(types):,} token types that occurred at least {config.min_count} times; threshold "
        f"{config.threshold:g} sd",
    ]
    figure = history_figure(histories, text, neuron, config.threshold, lines)
    drawing = Drawing(
        title=f"Dimension {neuron} on the token {text!r}", figure=figure,
        text="Above: mean activation on the token; below: its strength in the dimension's profile, with dots from "
        f"where it stays at {config.threshold:g} or above.",
    )  # fmt: skip
    return Result(
        kind="trace", title=f"History of dimension {neuron} on the token {text!r}", statements=statements,
        provenance=lines, tables=tables, drawings={"trace": drawing},
        data={
            "token": token, "text": text, "neuron": neuron, "search_layers": found.layers, "types": len(types),
            "histories": [dataclasses.asdict(history) for history in histories],
            "emerged": [history.emerged(config.threshold) for history in histories], "settings": vars(config),
        },
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is followed, and how it was found."""

    token: int
    text: str
    neuron: int
    strengths: Strengths
    candidates: Table
    statements: list[str]


def _subject(config: TraceConfig, last: NamedBundle, types: np.ndarray) -> _Subject:
    bundle, vocabulary = last.bundle, last.bundle.tokens
    layer, neuron = _neuron(config, last)
    layers = [layer] if layer is not None else _search_layers(config, last)
    token = _token(config, bundle, types)
    found = strengths(bundle, layers, types)
    statements = []
    if token is None and neuron is not None:
        order = found.tokens(neuron)[: config.top]
        token = int(order[0])
        candidates = _token_table(order, found, neuron, bundle.counts, vocabulary)
        statements.append(f"The token is the strongest one in dimension {neuron}: {_search(found, last)}.")
    elif token is not None:
        order = found.dimensions(token)[: config.top]
        candidates = _dimension_table(order, found, token, last, _text(vocabulary, token), config.threshold)
        if neuron is None:
            neuron = int(order[0])
            statements.append(
                f"The dimension is the one of greatest strength for the token: {_search(found, last)}. That it is "
                "strong there is how it was chosen; its history before, and other layers, were not looked at."
            )
    if token is None or neuron is None:
        raise ConfigError([Problem("token", "is missing, and so is neuron; give one of them")])
    share, median = found.percentile(token)
    strongest = float(found.mean[:, found.column(token)].max())
    statements.append(
        f"The strongest of {len(found.mean)} dimensions has a strength of {strongest:.2f} for this token, more than "
        f"for {share:.0%} of the {len(types):,} token types (median {median:.2f}); the token occurs "
        f"{int(bundle.counts[token]):,} times."
    )
    return _Subject(
        token=token, text=_text(vocabulary, token), neuron=neuron, strengths=found, candidates=candidates,
        statements=statements,
    )  # fmt: skip


def _followed(opened: Opened) -> list[Series]:
    """The series with checkpoints, of the one run that there may be."""
    runs = list(dict.fromkeys(each.run for each in opened.bundles))
    if len(runs) > 1:
        raise ConfigError(
            [Problem("bundles", f"are of {len(runs)} runs, {', '.join(runs)}; trace one after the other")]
        )
    series = [each for each in opened.series if each.checkpoints]
    if not series:
        raise ConfigError([Problem("bundles", "are of initial weights alone; give those of checkpoints")])
    return series


def _neuron(config: TraceConfig, last: NamedBundle) -> tuple[int | None, int | None]:
    """(layer, index) of the dimension that was given."""
    if config.neuron is None:
        return None, None
    *layer, index = (int(part) for part in config.neuron.split(":"))
    problems = []
    if not index < (dim := last.bundle.meta.model.dim):
        problems.append(Problem("neuron", f"{index} is not below the width of {dim}"))
    if layer and layer[0] not in last.bundle.layers:
        problems.append(
            Problem("neuron", f"layer {layer[0]} is not in {last.bundle.path}, which has {last.bundle.layers}")
        )
    if problems:
        raise ConfigError(problems)
    return (layer[0] if layer else None), index


def _search_layers(config: TraceConfig, last: NamedBundle) -> list[int]:
    there = last.bundle.layers
    if config.layers is None:
        return [layer for layer in there if layer < last.tail] or there
    if absent := sorted(set(config.layers) - set(there)):
        raise ConfigError([Problem("layers", f"{absent} are not in {last.bundle.path}, which has {there}")])
    return sorted(set(config.layers))


def _token(config: TraceConfig, bundle: Bundle, types: np.ndarray) -> int | None:
    """The token that was given. Raises `ConfigError` if there is none such, or too few of it."""
    if config.token is None and config.token_id is None:
        return None
    token = find_token(config.token, config.token_id, bundle)
    if token not in types:
        told = f"{_text(bundle.tokens, token)!r} occurs {int(bundle.counts[token])} times in the bundles"
        advice = f"below min_count={config.min_count}, too few for a mean; lower it, or collect more tokens"
        raise ConfigError([Problem("token", f"{told}, {advice}")])
    return token


def _history(series: Series, token: int, neuron: int, types: np.ndarray, advance: Callable[[int], None]) -> History:
    layers, bundles = series.layers, series.checkpoints
    shape, column = (len(layers), len(bundles)), int(np.searchsorted(types, token))
    activation, strength = np.zeros(shape), np.full(shape, np.nan)
    token_rank, dimension_rank = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for c, each in enumerate(bundles):
        for row, layer in enumerate(layers):
            view = each.bundle.layer(layer)
            activation[row, c] = token_means(view, token)[neuron]
            z = layer_strengths(view, types)
            if z[neuron].any():  # not silent
                strength[row, c] = z[neuron, column]
                token_rank[row, c] = (z[neuron] > z[neuron, column]).sum() + 1
                dimension_rank[row, c] = (z[:, column] > z[neuron, column]).sum() + 1
            advance(1)
    return History(
        series=series.label, steps=[each.step or 0 for each in bundles], alphas=[each.alpha for each in bundles],
        layers=layers, tail=series.any.tail, activation=activation, strength=strength, token_rank=token_rank,
        dimension_rank=dimension_rank,
    )  # fmt: skip


def _dimension_table(
    order: np.ndarray, found: Strengths, token: int, last: NamedBundle, text: str, threshold: float
) -> Table:
    views = [last.bundle.layer(layer) for layer in found.layers]
    activation = np.mean([token_means(view, token) for view in views], axis=0)
    column = found.column(token)
    above = np.zeros(len(found.mean), np.int64)
    for view in views:
        above += layer_strengths(view, found.types)[:, column] >= threshold
    rows = [
        {"rank": n + 1, "candidate": int(i), "strength": float(found.mean[i, column]),
         "activation": float(activation[i]), "layers_above": f"{above[i]} of {len(found.layers)}"}
        for n, i in enumerate(order)
    ]  # fmt: skip
    return candidate_table(f"Dimensions for {text!r}", _search(found, last).capitalize() + ".", rows, "dimension")


def _token_table(
    order: np.ndarray, found: Strengths, neuron: int, counts: np.ndarray, vocabulary: Sequence[str] | None
) -> Table:
    rows: list[dict[str, Any]] = [
        {"rank": n + 1, "candidate": _text(vocabulary, int(v)),
         "strength": float(found.mean[neuron, found.column(int(v))]), "count": int(counts[v])}
        for n, v in enumerate(order)
    ]  # fmt: skip
    return candidate_table(
        f"Tokens for dimension {neuron}", f"Mean strength over layers {found.layers}.", rows, "token"
    )


def _search(found: Strengths, last: NamedBundle) -> str:
    where = f"layer {found.layers[0]}" if len(found.layers) == 1 else f"the mean over layers {found.layers}"
    step = "" if last.step is None else f" at step {last.step:,}"
    return f"{where}{step}, {len(found.types):,} token types"


def _text(vocabulary: Sequence[str] | None, token: int) -> str:
    return f"#{token}" if vocabulary is None else vocabulary[token]
