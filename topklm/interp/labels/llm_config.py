"""The configuration of `apps.label llm`: which neurons, which endpoint, and how labels are scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from topklm.config import Verbatim
from topklm.errors import Problem
from topklm.interp.labels.llm_client import endpoint_problems
from topklm.interp.neurons import parse_neurons


@dataclass(frozen=True, kw_only=True)
class LlmConfig:
    """Labels by a language model, scored on excerpts that it was not shown, against other neurons' labels."""

    bundle: str = ""
    """A bundle of apps.collect."""
    neurons: Verbatim = ""
    """Neurons as LAYER:INDEX, layers counted from 0: 4:17,4:18."""
    candidates: Verbatim | None = None
    """Directory of a result whose neurons to label (apps.label candidates), as well or instead."""
    n: int | None = None
    """Only the first so many of them; null: all."""
    base_url: Verbatim = ""
    """Address of an OpenAI-compatible endpoint, what comes before /chat/completions: http://localhost:8000/v1."""
    model: Verbatim = ""
    """Its name of the language model."""
    key_env: str | None = "OPENAI_API_KEY"
    """Environment variable with the key, which is sent to base_url only, and never written. Not set, or null: none."""
    price_input: float | None = None
    """Price of a million tokens of prompts; null: the cost is not told."""
    price_output: float | None = None
    """Price of a million tokens of answers."""
    yes: bool = False
    """Go on after the number of calls, tokens and the cost were shown. In a YAML file the key needs quotes."""
    top_contexts: int = 12
    """Excerpts that a label is made from: the neuron's strongest, which do not overlap."""
    held_out: int = 20
    """Excerpts in which it fires that the label is scored on, at most, from the bundle's sample over all strengths;
    none overlaps those of the label. As many in which it fires nowhere."""
    per_call: int = 10
    """Excerpts in one scoring call."""
    before: int = 16
    """Tokens of an excerpt before the token."""
    after: int = 4
    """Tokens after it."""
    temperature: float = 0.0
    """Of the language model."""
    parallel: int = 4
    """Calls at a time."""
    timeout: float = 60.0
    """Seconds that a call may take."""
    retries: int = 6
    """Further attempts at a call that failed for now, after 1, 2, 4 ... seconds, or what the endpoint asks for."""
    cache: str | None = None
    """Directory of all answers; an equal request is not sent again. null: llm_cache in the bundle's directory."""
    ckpt: str | None = None
    """The bundle's checkpoint, which tells where neurons do not fire; null: where it was when it was collected."""
    data: str | None = None
    """Prepared data that the bundle was collected over; null: where the model's run had it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    seed: int = 0
    """Seed of the quiet excerpts, of their order and of the exchange of labels."""
    out: str | None = None
    """Directory of the result; null: labels_llm in the bundle's directory."""

    def problems(self) -> Iterator[Problem]:
        if not self.bundle:
            yield Problem("bundle", "is missing: a directory that apps.collect made, such as RUN/bundles/0000000500")
        if not self.neurons and self.candidates is None:
            yield Problem(
                "neurons", "is empty; give neurons=4:17,4:18 or candidates=DIR, a result of apps.label candidates"
            )
        elif self.neurons:
            try:
                parse_neurons(self.neurons)
            except ValueError as error:
                yield Problem("neurons", str(error))
        if not self.base_url:
            yield Problem("base_url", "is missing: the address of an endpoint, such as http://localhost:8000/v1")
        else:
            yield from endpoint_problems(self.base_url, None)
        if not self.model:
            yield Problem("model", "is missing: the endpoint's name of the language model")
        for key in ("top_contexts", "held_out", "per_call", "parallel", "timeout"):
            if getattr(self, key) <= 0:
                yield Problem(key, f"{getattr(self, key)} is not above 0")
        for key in ("before", "after", "retries", "temperature", "seed"):
            if getattr(self, key) < 0:
                yield Problem(key, f"{getattr(self, key)} is negative")
        for key in ("price_input", "price_output"):
            value = getattr(self, key)
            if value is not None and value < 0:
                yield Problem(key, f"{value} is negative")
        if self.n is not None and self.n < 1:
            yield Problem("n", f"{self.n} is below 1")
