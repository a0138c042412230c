"""Which bundles a figure shows: the newest of each reading, or one run over its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from topklm.bundles import NamedBundle
from topklm.report.neurons.read import Measured


def newest(measured: Sequence[Measured]) -> list[Measured]:
    """Per model and reading the bundle of the last step, at the checkpoint's own alpha where there is one; models in
    the order in which they were given, each followed by its controls."""
    groups: dict[Any, list[Measured]] = {}
    for each in measured:
        groups.setdefault((each.run, each.is_initial, str(each.bundle.meta.reading)), []).append(each)
    found = [
        max(group, key=lambda each: (each.at_own_alpha, -1 if each.step is None else each.step))
        for group in groups.values()
    ]
    runs = runs_of(measured)
    return sorted(found, key=lambda each: (runs.index(each.run), each.is_initial, each.cut is not None))


def runs_of(measured: Sequence[NamedBundle]) -> list[str]:
    """The runs in the order in which they were given."""
    return list(dict.fromkeys(each.run for each in measured))


def over_training(measured: Sequence[Measured], run: str) -> list[tuple[str, list[Measured]]]:
    """A run's checkpoints by step: (name of the line, bundles) at each checkpoint's own alpha and, for a TopK run, at
    alpha 0. A bundle whose own alpha is 0 is in both. Lines of fewer than two checkpoints are left out."""
    mine = [
        each for each in measured
        if each.run == run and not each.is_control and each.step is not None
        and each.bundle.meta.reading.site == "post"
    ]  # fmt: skip
    mine.sort(key=lambda each: each.step or 0)
    own = [each for each in mine if each.at_own_alpha]
    zero = [each for each in mine if each.alpha == 0]
    lines = [("own alpha" if mine and mine[0].is_topk else "", own)]
    if [each.bundle.sha256 for each in zero] != [each.bundle.sha256 for each in own]:
        lines.append(("alpha 0", zero))
    return [(name, bundles) for name, bundles in lines if len(bundles) > 1]
