"""Which runs are compared with which: bundles of one model that differ in their seeds."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from topklm.bundles import Bundle, incomparable
from topklm.errors import Problem

_NO_OTHER_MODEL = ("seed", "backend", "loss_chunk")
"""Keys of the section `model` in which runs of one series may differ."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One run of a series: a bundle, or a file."""

    name: str
    """For people."""
    key: str
    """Hash that stands for its contents."""
    bundle: Bundle | None
    """None: a file."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Runs that are alike but for their seeds, and the pairs of them that one mean is taken over."""

    label: str
    """What the runs are, for figures and tables."""
    sources: list[Source]
    """The runs of the pairs."""
    pairs: list[tuple[int, int]]
    """Indices into `sources`."""
    is_initial: bool = False
    """Whether these are random initialisations: a floor of the trained series of the same `architecture`."""
    same_initial: bool = False
    """Whether the two runs of each pair began from the same initial weights."""
    architecture: str = ""
    """Equal for trained runs and their random initialisations."""


def series_of(bundles: Sequence[Bundle]) -> tuple[list[Series], list[Problem]]:
    """Sort bundles into series: runs of one configuration, read alike at one step. Pairs that began from the same
    initial weights (`model.seed`) are a series of their own, since they say less about other seeds.

    Returns (series, problems): a bundle that is alone, the same weights twice.
    """
    kinds: dict[str, list[Bundle]] = {}
    for bundle in bundles:
        kinds.setdefault(_kind(bundle), []).append(bundle)
    series: list[Series] = []
    problems: list[Problem] = []
    for label, members in zip(_labels([members[0] for members in kinds.values()]), kinds.values(), strict=True):
        if len(members) == 1:
            problems.append(Problem("bundles", f"{members[0].path} ({label}) is alone; add a run with another seed"))
        for a, b in itertools.combinations(members, 2):
            if _weights(a) == _weights(b):
                problems.append(Problem("bundles", f"{a.path} and {b.path} are of the same weights; leave one out"))
        series += _split(label, members)
    return series, problems


def reasons_against(series: Sequence[Series]) -> list[str]:
    """Why these series must not stand side by side (`incomparable`), of all their bundles."""
    bundles = {source.key: source.bundle for each in series for source in each.sources if source.bundle is not None}
    return incomparable(list(bundles.values()))


def _split(label: str, members: Sequence[Bundle]) -> list[Series]:
    """A series of the pairs with other initial weights, and one of those with the same."""
    names = Counter(bundle.meta.model.run for bundle in members)
    pairs: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    for a, b in itertools.combinations(range(len(members)), 2):
        seed = members[a].meta.model.model.get("seed")
        pairs[seed is not None and seed == members[b].meta.model.model.get("seed")].append((a, b))
    found = []
    for same, chosen in pairs.items():
        used = sorted({i for pair in chosen for i in pair})
        if used:
            found.append(
                Series(
                    label=f"{label}, same initial weights" if same else label,
                    sources=[_source(members[i], names) for i in used],
                    pairs=[(used.index(a), used.index(b)) for a, b in chosen],
                    is_initial=members[0].meta.model.init == "random",
                    same_initial=same,
                    architecture=_architecture(members[0]),
                )
            )
    return found


def _source(bundle: Bundle, names: Counter[str]) -> Source:
    model = bundle.meta.model
    name = model.run if names[model.run] == 1 else f"{model.run} {bundle.path.name}"
    seed = model.model.get("seed")
    return Source(name=name if seed is None else f"{name} (seed {seed})", key=bundle.sha256, bundle=bundle)


def _kind(bundle: Bundle) -> str:
    """Equal for the runs of one series."""
    model = bundle.meta.model
    return json.dumps([_architecture(bundle), model.init, model.step, model.dtype])


def _architecture(bundle: Bundle) -> str:
    """Equal for runs that differ in their weights alone."""
    model, reading = bundle.meta.model, bundle.meta.reading
    sizes = {key: value for key, value in model.model.items() if key not in _NO_OTHER_MODEL}
    read = [model.topk, model.alpha, reading.site, reading.read_topk, bundle.layers]
    return json.dumps([model.n_layers, model.dim, sizes, *read], sort_keys=True)


def _weights(bundle: Bundle) -> Any:
    """Equal for bundles of the same weights, itself for one whose checkpoint has no hash."""
    model = bundle.meta.model
    if model.init == "random":
        return model.model.get("seed")
    return model.sha256 or bundle.sha256


def _labels(bundles: Sequence[Bundle]) -> list[str]:
    """What tells these bundles apart, in words."""
    models = [bundle.meta.model for bundle in bundles]
    steps = {model.step for model in models if model.init != "random"}
    sizes = {(model.dim, model.n_layers) for model in models}
    labels = []
    for bundle, model in zip(bundles, models, strict=True):
        cut = bundle.meta.reading.read_topk
        parts = [_activation(model.topk)]
        parts += [f"D={model.dim} L={model.n_layers}"] if len(sizes) > 1 else []
        parts += [f"read through k={cut['k']}"] if cut else []
        parts += [f"alpha {model.alpha:g}"] if model.alpha else []
        parts += ["before the cut"] if bundle.meta.reading.site == "pre" else []
        parts += ["initial weights"] if model.init == "random" else []
        parts += (
            [f"step {model.step:,}"] if len(steps) > 1 and model.init != "random" and model.step is not None else []
        )
        labels.append(", ".join(parts))
    often = Counter(labels)
    labels = [
        label if often[label] == 1 else f"{label} ({model.run})" for label, model in zip(labels, models, strict=True)
    ]
    often = Counter(labels)  # runs of one name: results are kept by label, so no two may have the same
    return [label if often[label] == 1 else f"{label} ({i + 1})" for i, label in enumerate(labels)]


def _activation(topk: dict[str, Any | None] | None) -> str:
    """What a model does to its stream."""
    if topk is None:
        return "dense"
    name = topk.get("activation") or "topk"
    if name in ("relu", "identity"):  # they have no k
        return name
    return f"{'TopK' if name == 'topk' else name} k={topk.get('k')}"
