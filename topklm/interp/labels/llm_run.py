"""Labels by a language model: the plan and its cost, the calls, the scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from topklm.bundles import Bundle, open_bundle
from topklm.errors import ConfigError, DataError, Problem
from topklm.interp.labels.activity import fires, subject_of
from topklm.interp.labels.corpus import open_corpus
from topklm.interp.labels.detection import Detection, detection, others
from topklm.interp.labels.excerpts import Excerpts, Span
from topklm.interp.labels.llm_client import Answer, ChatClient
from topklm.interp.labels.llm_config import LlmConfig
from topklm.interp.labels.llm_prompts import (
    LABEL_TOKENS,
    detect_prompt,
    detect_tokens,
    estimated_tokens,
    label_prompt,
    read_label,
    read_marks,
)
from topklm.interp.neurons import parse_neurons, result_neurons

A = TypeVar("A")
Advance = Callable[[int], None]
POOL_WINDOWS = 64
"""Windows that quiet excerpts are taken from, for all neurons together."""
_TYPICAL_LABEL = "x" * 60


@dataclass(frozen=True, kw_only=True)
class Case:
    """One neuron, and what a language model is shown of it."""

    layer: int
    neuron: int
    shown: list[str]
    """Marked excerpts for the label."""
    texts: list[str]
    """Held-out excerpts, firing and quiet ones in random order; empty if there are not at least two of each."""
    fires: list[bool]
    """Which of them."""

    @property
    def name(self) -> str:
        """layer:index"""
        return f"{self.layer}:{self.neuron}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be asked, as far as it is known before the labels are."""

    label_calls: int
    """Calls for labels that are not in the cache."""
    score_calls: int
    """Calls for scores; those whose labels are in the cache, and they too, are not counted."""
    cached: int
    """Calls that are in the cache."""
    input_tokens: int
    """Of all prompts to be sent: a quarter of their characters."""
    output_tokens: int
    """At most."""

    def cost(self, config: LlmConfig) -> float | None:
        """In the currency of the prices, as good as the estimate of tokens; None without prices."""
        if config.price_input is None or config.price_output is None:
            return None
        return (self.input_tokens * config.price_input + self.output_tokens * config.price_output) / 1e6

    def sentence(self, config: LlmConfig) -> str:
        """What it costs."""
        cost = self.cost(config)
        told = "cost not known (give price_input and price_output, for a million tokens)"
        return (
            f"{self.label_calls + self.score_calls:,} calls to {config.base_url} ({self.label_calls:,} for labels, "
            f"{self.score_calls:,} for scores; {self.cached:,} more are in the cache), about {self.input_tokens:,} "
            f"tokens of prompts and at most {self.output_tokens:,} of answers; "
            + (told if cost is None else f"about {cost:,.4f}")
        )


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One neuron's label and how it did."""

    case: Case
    label: str | None
    """None: the answer held none."""
    own: Detection | None
    """On the neuron's own held-out excerpts; None: there were too few."""
    control: Detection | None
    """Of another neuron's label on the same excerpts; None also where there is no other that reads otherwise."""


def named_neurons(config: LlmConfig, bundle: Bundle) -> list[tuple[int, int]]:
    """The neurons that were asked for, each once. Raises `ConfigError` for those that the bundle does not have."""
    found = parse_neurons(config.neurons) if config.neurons else []
    if config.candidates is not None:
        try:
            found += result_neurons(config.candidates)
        except DataError as error:
            raise ConfigError([Problem("candidates", str(error))]) from error
    found = list(dict.fromkeys(found))[: config.n]
    width = bundle.meta.model.dim
    if absent := [str(each) for each in found if each.layer not in bundle.layers or each.index >= width]:
        told = f"{', '.join(absent)}: {bundle.path} has layers {bundle.layers} of {width} neurons"
        raise ConfigError([Problem("neurons", told)])
    return [(each.layer, each.index) for each in found]


def gather(config: LlmConfig, device: torch.device) -> tuple[Bundle, list[Case]]:
    """Excerpts of all neurons. Runs the model on a few windows, to know where each neuron does not fire."""
    try:
        bundle = open_bundle(config.bundle)
    except DataError as error:
        raise ConfigError([Problem("bundle", str(error))]) from error
    pairs = named_neurons(config, bundle)
    corpus = open_corpus(bundle, config.data)
    excerpts = Excerpts(corpus, config.before, config.after)
    if config.before + config.after + 1 > corpus.context:
        told = f"{config.before} + 1 + {config.after} tokens are more than a window of {corpus.context}"
        raise ConfigError([Problem("before", told)])
    rng = np.random.default_rng(config.seed)
    windows = np.sort(rng.permutation(bundle.windows)[:POOL_WINDOWS])
    pool = excerpts.pool(windows)
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in pairs:
        by_layer.setdefault(layer, []).append(neuron)
    subject = subject_of(bundle, config.ckpt, device)
    fired = fires(bundle, corpus, subject, windows, by_layer)
    cases = []
    for layer, neuron in pairs:
        stats = bundle.layer(layer).stats
        where = fired[layer][:, :, by_layer[layer].index(neuron)]  # [w, context]
        shown = excerpts.strongest(stats, neuron, config.top_contexts)
        known = {excerpts.text(span, False) for span in shown}  # a copy elsewhere in the corpus is not held out either
        active = [
            span for span in excerpts.sampled(stats, neuron, config.held_out, shown)
            if excerpts.text(span, False) not in known
        ]  # fmt: skip
        quiet = _quiet(pool, windows, where, shown, len(active), rng)
        held = [(span, True) for span in active[: len(quiet)]] + [(span, False) for span in quiet]
        held = [held[i] for i in rng.permutation(len(held))] if len(quiet) >= 2 else []
        cases.append(
            Case(
                layer=layer, neuron=neuron, shown=[excerpts.text(span, True) for span in shown],
                texts=[excerpts.text(span, False) for span, _ in held], fires=[truth for _, truth in held],
            )
        )  # fmt: skip
    return bundle, cases


def plan(config: LlmConfig, client: ChatClient, cases: Sequence[Case]) -> Plan:
    """What the calls for these neurons cost, by what the cache does not have."""
    label_calls = score_calls = cached = tokens_in = tokens_out = 0
    labels: list[str | None] = []
    for case in cases:
        if not case.shown:
            labels.append(None)
            continue
        prompt = label_prompt(case.shown)
        if (answer := client.known(prompt, LABEL_TOKENS)) is not None:
            cached += 1
            labels.append(read_label(answer.text))
            continue
        label_calls, tokens_in, tokens_out = (
            label_calls + 1,
            tokens_in + estimated_tokens(prompt),
            tokens_out + LABEL_TOKENS,
        )
        labels.append(_TYPICAL_LABEL)
    for i, _, label in _judgements(config, cases, labels):
        for texts in _groups(cases[i].texts, config.per_call):
            prompt, most = detect_prompt(label, texts), detect_tokens(len(texts))
            if label != _TYPICAL_LABEL and client.known(prompt, most) is not None:
                cached += 1
                continue
            score_calls, tokens_in, tokens_out = (
                score_calls + 1,
                tokens_in + estimated_tokens(prompt),
                tokens_out + most,
            )
    return Plan(
        label_calls=label_calls, score_calls=score_calls, cached=cached, input_tokens=tokens_in,
        output_tokens=tokens_out,
    )  # fmt: skip


def ask_and_score(
    config: LlmConfig, client: ChatClient, cases: Sequence[Case], advance: Advance | None = None
) -> tuple[list[Scored], tuple[int, int]]:
    """Ask for all labels, then score each on its own neuron and on another; (scores, tokens of prompts and answers)."""
    shown = [case for case in cases if case.shown]
    answers = _parallel(config, lambda case: client.ask(label_prompt(case.shown), LABEL_TOKENS), shown, advance)
    found = {case.name: read_label(answer.text) for case, answer in zip(shown, answers, strict=True)}
    labels = [found.get(case.name) for case in cases]
    asked = [
        (i, is_own, label, texts)
        for i, is_own, label in _judgements(config, cases, labels)
        for texts in _groups(cases[i].texts, config.per_call)
    ]
    judged = _parallel(
        config, lambda each: client.ask(detect_prompt(each[2], each[3]), detect_tokens(len(each[3]))), asked, advance
    )
    marks: dict[tuple[int, bool], list[bool | None]] = {}
    for (i, is_own, _, texts), answer in zip(asked, judged, strict=True):
        marks.setdefault((i, is_own), []).extend(read_marks(answer.text, len(texts)))
    scored = []
    for i, case in enumerate(cases):
        own, control = (
            detection(case.fires, marks[i, is_own]) if (i, is_own) in marks else None for is_own in (True, False)
        )
        scored.append(Scored(case=case, label=labels[i], own=own, control=control))
    paid = [answer for answer in [*answers, *judged] if not answer.cached]
    return scored, (sum(a.prompt_tokens for a in paid), sum(a.completion_tokens for a in paid))


def balanced(found: Detection | None) -> float:
    """Its balanced accuracy; NaN for None."""
    return math.nan if found is None else found.balanced


def _judgements(config: LlmConfig, cases: Sequence[Case], labels: Sequence[str | None]) -> list[tuple[int, bool, str]]:
    """(case, whether it is its own, label) of all that is judged: each case by its own label, and by another neuron's
    that reads otherwise."""
    named = [(i, label) for i, label in enumerate(labels) if label is not None]
    other = others([label for _, label in named], config.seed) if len(named) > 1 else None
    found = []
    for place, (i, label) in enumerate(named):
        if not cases[i].texts:
            continue
        found.append((i, True, label))
        control = label if other is None else named[other[place]][1]
        # While labels are not known yet (the plan), all of them read alike.
        if other is not None and (control.casefold() != label.casefold() or control == _TYPICAL_LABEL):
            found.append((i, False, control))
    return found


def _quiet(
    pool: Sequence[Span], windows: np.ndarray, where: np.ndarray, shown: Sequence[Span], n: int,
    rng: np.random.Generator,
) -> list[Span]:  # fmt: skip
    """At most n random excerpts of the pool in which the neuron fires nowhere; `where` [w, context]."""
    before = np.concatenate((np.zeros((len(where), 1), np.int64), np.cumsum(where, axis=1)), axis=1)
    found: list[Span] = []
    for i in rng.permutation(len(pool)):
        span = pool[i]
        row = int(np.searchsorted(windows, span.start, side="right")) - 1
        first = int(windows[row])
        if len(found) < n and before[row, span.stop - first] == before[row, span.start - first]:
            found += [] if span.overlaps(shown) else [span]
    return found


def _groups(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def _parallel(
    config: LlmConfig, ask: Callable[[A], Answer], items: Sequence[A], advance: Advance | None
) -> list[Answer]:
    """In the order of the items; the first error ends it, and what is not begun is not sent."""
    with ThreadPoolExecutor(config.parallel) as pool:
        futures = [pool.submit(ask, item) for item in items]
        answers = []
        try:
            for future in futures:
                answers.append(future.result())
                if advance is not None:
                    advance(1)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return answers
