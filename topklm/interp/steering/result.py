"""What steering leaves behind: texts, and if it was measured the curves, as one result (`topklm.report.result`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from topklm.checkpoint.load import LoadedConfig
from topklm.interp.steering.config import DoseConfig, SteerConfig
from topklm.interp.steering.plan import Plan
from topklm.interp.steering.samples import SampleStore
from topklm.report.result import Result
from topklm.report.steering import (
    DoseCurve,
    caveats,
    concept_table,
    dose_figure,
    dose_table,
    summaries,
    text_table,
    verdict,
)


def text_result(config: SteerConfig, plan: Plan, store: SampleStore, loaded: LoadedConfig) -> Result:
    """Texts side by side: the paper's Table 2."""
    named = ", ".join(str(target.neuron) for target in plan.targets)
    return Result(
        kind="steering",
        title=f"Steered texts of {named}",
        statements=[
            "Texts of one prompt: examples, from which no rate follows (python -m apps.steer dose measures one)."
        ],
        provenance=provenance(config, plan, loaded),
        tables={"texts": text_table(_texts(plan, store, config.n_samples), config.prompt)},
    )


def dose_result(
    config: DoseConfig, plan: Plan, store: SampleStore, loaded: LoadedConfig, curves: Sequence[DoseCurve]
) -> Result:
    """Curves with their verdicts, tables, and some of the texts."""
    lines = provenance(config, plan, loaded)
    statements = [*map(verdict, curves), *summaries(curves), *caveats(curves)]
    return Result(
        kind="steering",
        title=f"Steering {', '.join(dict.fromkeys(curve.neuron for curve in curves))}: dose-response",
        statements=statements,
        provenance=lines,
        tables={
            "doses": dose_table(curves),
            "neurons": concept_table(curves),
            "texts": text_table(_texts(plan, store, config.shown_samples), config.prompt),
        },
        drawings={f"{curve.counted}_{curve.neuron.replace(':', '_')}": dose_figure(curve, lines) for curve in curves},
        data={
            "curves": [dataclasses.asdict(curve) for curve in curves],
            "sets": {
                str(target.neuron): {
                    name: found.tokens
                    for name, found in (("reads", target.concept), ("writes", target.written))
                    if found is not None
                }
                for target in plan.targets
            },
        },
    )


def provenance(config: SteerConfig, plan: Plan, loaded: LoadedConfig) -> list[str]:
    """Model, bundle and settings, a line each."""
    alpha = "dense" if loaded.alpha is None else f"alpha {loaded.alpha:g}"
    step = "step unknown" if loaded.step is None else f"step {loaded.step:,}"
    lines = [f"model: {loaded.path}, {step}, {alpha}, {_short(loaded.sha256)}, {config.dtype}"]
    if plan.bundle is not None:
        bundle = plan.bundle
        lines.append(f"bundle: {bundle.path}, {bundle.n_tokens:,} tokens, sha256 {_short(bundle.sha256)}")
        if bundle.meta.model.sha256 != loaded.sha256:
            lines[-1] += f", OF ANOTHER CHECKPOINT ({_short(bundle.meta.model.sha256)})"
        if bundle.meta.model.alpha != loaded.alpha:
            lines[-1] += f", AT ANOTHER ALPHA ({bundle.meta.model.alpha})"
    lines.append(
        f"texts: “{config.prompt}”, {config.n_samples} of at most {config.max_tokens} tokens, temperature "
        f"{config.temperature:g}, top-k {config.top_k}, top-p {config.top_p}, seed {config.seed}; offsets are added to "
        "the pre-activation at every position; layers count from 0"
    )
    if isinstance(config, DoseConfig):
        c = config.concept
        lines.append(
            f"what it reads: types with a mean activation above {c.share:g} P{c.percentile:g} of the positive means, "
            f"min_count {c.min_count}, at most {c.cap}; what it writes: the {config.written} with the largest direct "
            f"effect on their logits; controls of density within a factor {config.density_tolerance:g}; "
            f"{config.bootstrap:,} bootstrap draws, {config.level:.0%} intervals"
        )
    return lines


def _texts(plan: Plan, store: SampleStore, n: int) -> list[dict[str, Any]]:
    rows = []
    unsteered = store.get(None, 0.0) or []
    for sample in unsteered[:n]:
        rows.append({"neuron": "-", "dose": "unsteered", "sample": sample.sample, "text": sample.text})
    for target in plan.targets:
        for offset in target.offsets:
            multiple = target.multiple(offset)
            dose = f"{offset:+.3g}" + ("" if multiple is None else f" ({multiple:.3g}x)")
            for sample in (store.get(target.neuron, offset) or [])[:n]:
                rows.append({"neuron": str(target.neuron), "dose": dose, "sample": sample.sample, "text": sample.text})
    return rows


def _short(sha256: str | None) -> str:
    return "no hash" if sha256 is None else sha256[:12]
