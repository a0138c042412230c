"""The dose-response measurement: cells of texts, their estimates, and the test against controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from topklm.interp.steering.concept import Concept
from topklm.interp.steering.config import DoseConfig
from topklm.interp.steering.estimate import Bootstrap, count, permutation_test
from topklm.interp.steering.plan import Plan, Target
from topklm.interp.steering.samples import Key, SampleStore
from topklm.interp.steering.texts import Writer
from topklm.report.steering import Counted, Dose, DoseCurve

SHOWN_PIECES = 24
"""Tokens of a set that are named."""


def cells(plan: Plan) -> Iterator[Key]:
    """Every (neuron, offset) that a plan needs texts of, each once: unsteered, then neuron by neuron, doses first."""
    seen: set[Key] = set()
    for key in _cells(plan):
        if key not in seen:
            seen.add(key)
            yield key


def write_cells(plan: Plan, writer: Writer, store: SampleStore, done: Callable[[bool], None] | None = None) -> None:
    """Make the texts of every cell that `store` does not have; `done` is told of each cell whether it was there."""
    for neuron, offset in cells(plan):
        there = store.get(neuron, offset) is not None
        if not there:
            store.add(writer.write(neuron, offset))
        if done is not None:
            done(there)


def measure(plan: Plan, store: SampleStore, config: DoseConfig) -> list[DoseCurve]:
    """The dose-response of every steered neuron from the texts in `store`: of what it reads, then of what it writes."""
    curves = []
    for target in plan.targets:
        sets: dict[Counted, Concept | None] = {"reads": target.concept, "writes": target.written}
        curves += [_curve(plan, target, store, config, name, found) for name, found in sets.items() if found]
    return curves


def _curve(
    plan: Plan, target: Target, store: SampleStore, config: DoseConfig, counted: Counted, concept: Concept
) -> DoseCurve:
    assert plan.bundle is not None

    def counts(key: Key):  # type: ignore[no-untyped-def]
        samples = store.get(*key)
        assert samples is not None
        return count(samples, concept)

    bootstrap = Bootstrap(config.n_samples, config.bootstrap, config.seed, config.level)
    base = counts((None, 0.0))
    own = [counts((target.neuron, offset)) for offset in target.offsets]
    others = [
        [counts((control.neuron, control.offsets[i])) for control in target.controls]
        for i in range(len(target.offsets))
    ]  # [dose][control]
    rates = np.array([[cell.rate for cell in (mine, *each)] for mine, each in zip(own, others, strict=True)]).T
    p_doses, p = permutation_test(rates, np.sign(target.offsets))
    doses = [
        Dose(
            offset=offset,
            multiple=target.multiple(offset),
            n_tokens=int(mine.tokens.sum()),
            rate=bootstrap.rate(mine),
            gain=bootstrap.gain(mine, base),
            lead=bootstrap.lead(mine, each),
            perplexity=bootstrap.perplexity(mine),
            price=bootstrap.price(mine, base),
            repeated=mine.repeated_share,
            control_rates=[cell.rate for cell in each],
            control_perplexities=[cell.perplexity for cell in each],
            control_repeated=float(np.mean([cell.repeated_share for cell in each])),
            p=float(p_doses[i]),
        )
        for i, (offset, mine, each) in enumerate(zip(target.offsets, own, others, strict=True))
    ]
    pieces = plan.bundle.tokens
    return DoseCurve(
        neuron=str(target.neuron),
        counted=counted,
        kind=plan.bundle.layer(target.neuron.layer).kind,
        density=target.density,
        unit=target.scale.words if target.scale is not None and target.scale.value > 0 else "",
        concept=[
            plan.tokenizer.piece(int(token)) if pieces is None else pieces[token]
            for token in concept.tokens[:SHOWN_PIECES]
        ],
        n_concept=len(concept.tokens),
        corpus_rate=concept.corpus_rate,
        n_samples=config.n_samples,
        rate=bootstrap.rate(base),
        perplexity=bootstrap.perplexity(base),
        repeated=base.repeated_share,
        n_tokens=int(base.tokens.sum()),
        controls=[str(control.neuron) for control in target.controls],
        control_densities=[control.density for control in target.controls],
        same_dose=config.control_dose == "same",
        doses=doses,
        p=p,
    )


def _cells(plan: Plan) -> Iterator[Key]:
    yield None, 0.0
    for target in plan.targets:
        for offset in target.offsets:
            yield target.neuron, offset
        for i in range(len(target.offsets)):
            for control in target.controls:
                yield control.neuron, control.offsets[i]
