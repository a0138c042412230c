"""What the harness leaves out: standard errors of weighted perplexities, token perplexity, nearness to chance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from topklm.evaluate.validation import ratio_stderr

Metrics = dict[str, Any]
"""One task's results in the harness's schema: `acc,none`, `acc_stderr,none`, ..."""


def fill_errors(metrics: Metrics, samples: Iterable[dict[str, Any]]) -> None:
    """Standard errors where the harness has none: metrics of (loglikelihood, weight) pairs, such as word_perplexity.

    exp(R) and R / ln 2 of R = -sum(loglikelihood) / sum(weight): |d/dR| times the error of R.
    """
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for sample in samples:
        for name in sample["metrics"]:
            value = sample.get(name)
            if isinstance(value, tuple | list) and len(value) == 2:
                pairs.setdefault((name, sample["filter"]), []).append((-float(value[0]), float(value[1])))
    for (name, filter_), found in pairs.items():
        slope = {"bits_per_byte": 1 / math.log(2)}.get(name, metrics.get(f"{name},{filter_}"))
        is_known, key = name.endswith(("_perplexity", "bits_per_byte")), f"{name}_stderr,{filter_}"
        if is_known and slope and len(found) > 1 and metrics.get(key) == "N/A":
            metrics[key] = slope * ratio_stderr(*np.array(found).T)


def add_token_perplexity(metrics: Metrics, samples: Sequence[dict[str, Any]], n_tokens: dict[int, int]) -> None:
    """Perplexity per token of the model's own tokenizer beside those per word and byte; `n_tokens` by document id."""
    pairs = []
    for sample in samples:
        value = (float(sample["filtered_resps"][0]), n_tokens[sample["doc_id"]])
        sample["token_perplexity"] = value
        sample["metrics"] = [*sample["metrics"], "token_perplexity"]
        pairs.append(value)
    total = sum(n for _, n in pairs)
    if total:
        metrics["token_perplexity,none"] = math.exp(min(-sum(log_p for log_p, _ in pairs) / total, 700.0))
        metrics["token_perplexity_stderr,none"] = "N/A"


def near_chance(metrics: Metrics, chance: float | None) -> list[str]:
    """The accuracies that lie within two standard errors of guessing: their own, or where that is larger (few
    documents, all of them right or wrong) the one that guessing has, sqrt(chance (1 - chance) / n)."""
    if chance is None:
        return []
    near = []
    for key, value in metrics.items():
        name, _, filter_ = key.partition(",")
        error = metrics.get(f"{name}_stderr,{filter_}")
        if not name.startswith("acc") or name.endswith("_stderr"):
            continue
        own = error if isinstance(error, int | float) and math.isfinite(error) else 0.0
        n = metrics.get("sample_len")
        guessing = math.sqrt(chance * (1 - chance) / n) if isinstance(n, int) and n else 0.0
        if abs(value - chance) <= 2 * max(own, guessing):
            near.append(key)
    return near
