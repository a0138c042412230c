"""A plan as sentences and tables, for the terminal, a result's files and docs/plan.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from topklm.budget import activations
from topklm.budget.course import duration
from topklm.budget.memory import PARTS, moments
from topklm.budget.network import ADAPTER, REACHED
from topklm.budget.plan import Plan
from topklm.budget.search import MODES
from topklm.report.table import Column, Table

GIB, MIB = 2**30, 2**20


def statements(plan: Plan) -> list[str]:
    """The verdict first, then what would make it fit, then what looks odd."""
    mode, gib = plan.mode, plan.gpu.memory / GIB
    verdict = "fits" if plan.fits else "does NOT fit"
    said = [
        f"{plan.name} {verdict} on {_machine(plan)}: each GPU has {gib:.1f} GiB and {mode.needed / GIB:.1f} are needed "
        f"(checkpointing {mode.name}, micro-batches of {plan.setting.sequences}).",
        f"At an MFU of {plan.mfu:.0%} it takes {duration(3600 * plan.course.hours)} for {tokens(plan.course.tokens)} "
        f"tokens, {plan.course.tokens_per_second:,.0f} a second.",
    ]
    if not plan.fits:
        said += [f"It fits with {each.arguments} ({each.price})." for each in plan.remedies] or [
            "Nothing was found that makes it fit, neither one sequence a micro-batch in any mode of checkpointing nor "
            "more GPUs; a smaller model, shorter sequences or GPUs with more memory would."
        ]
    return [*said, *plan.notes]


def provenance(plan: Plan) -> list[str]:
    """What the figures are."""
    return [
        f"{plan.name}: {sum(plan.parameters.values()):,} parameters, {_machine(plan)}. Closed forms of the "
        f"configuration; nothing was run. Assumed: MFU {plan.mfu:.0%}, peak {plan.gpu.peak / 1e12:g} TFLOP/s."
    ]


def tables(plan: Plan) -> dict[str, Table]:
    """By the name of their files."""
    return {"run": run_table(plan), "memory": memory_table(plan), "activations": activations_table(plan)}


def run_table(plan: Plan) -> Table:
    """Everything but memory."""
    course, saved, setting = plan.course, plan.checkpoints, plan.setting
    total = sum(plan.parameters.values())
    parts = ", ".join(f"{name} {n / 1e6:,.1f} M" for name, n in plan.parameters.items() if n)
    again = course.recomputed_flops_per_token / course.flops_per_token
    rows = [
        ("parameters", f"{total / 1e6:,.1f} M", parts),
        ("FLOP per token", f"{course.flops_per_token / 1e6:,.0f} M",
         f"by Lingua's formula {course.lingua_flops_per_token / 1e6:,.0f} M"
         + f"; checkpointing computes {again:.0%} more, which no MFU counts" * (again > 0)),
        ("step", duration(course.step_seconds),
         f"{course.tokens_per_step:,} tokens: {setting.micro_batches} x {setting.sequences} sequences of "
         f"{setting.seq_len:,} on each of {plan.ranks} ranks (dp_replicate {setting.replicas}, dp_shard "
         f"{setting.shards})"),
        ("speed", f"{course.tokens_per_second:,.0f} tokens/s", f"assuming an MFU of {plan.mfu:.0%}"),
        ("time", duration(3600 * course.hours), f"{course.gpu_hours:,.2f} GPU-hours, {course.steps:,} steps"),
        ("tokens", tokens(course.tokens), f"{course.tokens / total:,.1f} per parameter"
         + ("" if plan.epochs is None else f"; {plan.epochs:.2f} times through the data")),
        ("warm-up", f"{plan.warmup:,} steps", f"{plan.warmup / course.steps:.1%} of the run"),
        *_annealing(plan),
        *_communication(plan),
        ("a checkpoint", f"{saved.bytes / 1e9:.2f} GB",
         f"{duration(saved.seconds)}{'' if saved.blocking else ' in the background'}; {saved.bytes_per_rank / 1e9:.3f} "
         "GB from each rank" + f", {saved.host_bytes / 1e9:.1f} GB of main memory a node" * (not saved.blocking)),
        ("checkpoints", f"{saved.disk / 1e9:,.1f} GB",
         f"on disk at most; {saved.saves} are written, one every {duration(3600 * course.hours / saved.saves)}, "
         f"{saved.kept} stay"),
    ]  # fmt: skip
    columns = (Column("what", ""), Column("figure", f"{plan.name} on {_machine(plan)}"), Column("of", ""))
    named = [dict(zip(("what", "figure", "of"), row, strict=True)) for row in rows]
    return Table("The run", "Time without validation, saving and starting.", columns, named)


def memory_table(plan: Plan) -> Table:
    """Parts at the peak, for each mode of checkpointing."""
    figures: dict[str, list[float]] = {part: [getattr(mode.peak, part) for mode in plan.modes] for part in PARTS}
    figures["all tensors"] = [mode.peak.total for mode in plan.modes]
    figures["slack and CUDA"] = [mode.needed - mode.peak.total for mode in plan.modes]
    figures["needed"] = [mode.needed for mode in plan.modes]
    words = {
        "fits": ["yes" if mode.fits else "NO" for mode in plan.modes],
        "highest at": [mode.peak.name for mode in plan.modes],
        "largest batch_size": ["none" if mode.largest is None else str(mode.largest) for mode in plan.modes],
    }
    note = (
        "At the moment of a step where it is highest. Weights: fp32 shards, and the gathered ones of embedding, head "
        "and the block at work. Slack and CUDA are assumed, tensors computed."
    )
    return _by_mode(plan, "Memory per GPU", note, figures, words)


def activations_table(plan: Plan) -> Table:
    """What the forward pass keeps, for each mode of checkpointing."""
    kept = [activations.saved(plan.setting.with_checkpointing(mode)) for mode in MODES]
    names = dict.fromkeys(name for parts in kept for name, size in parts.items() if size)
    figures = {name: [parts.get(name, 0.0) for parts in kept] for name in names}
    figures["all"] = [sum(parts.values()) for parts in kept]
    compiled = "; compiled blocks" if plan.setting.compiled else ""
    note = f"Of one micro-batch, all blocks, when the backward pass begins{compiled}."
    return _by_mode(plan, "Kept for the backward pass", note, figures, {})


def _by_mode(
    plan: Plan, title: str, note: str, figures: Mapping[str, Sequence[float]], words: Mapping[str, Sequence[str]]
) -> Table:
    """A row for each figure, bytes in GiB or MiB, a column for each mode."""
    unit, name = (GIB, "GiB") if plan.mode.peak.total > GIB else (MIB, "MiB")
    text = {part: [f"{size / unit:,.2f}" for size in sizes] for part, sizes in figures.items()} | dict(words)
    rows = [{"part": part, **dict(zip(MODES, cells, strict=True))} for part, cells in text.items()]
    own = plan.setting.checkpointing
    columns = [Column("part", name), *(Column(m, f"{m} (configured)" if m == own else m) for m in MODES)]
    return Table(f"{title}, {name}, by activation checkpointing", note, columns, rows)


def data(plan: Plan) -> dict[str, Any]:
    """Every number, in bytes, seconds and FLOP."""
    figures = dataclasses.asdict(plan)
    figures["moments"] = {
        mode: {m.name: m.parts() for m in moments(plan.setting.with_checkpointing(mode))} for mode in MODES
    }
    figures["course"] |= {
        name: getattr(plan.course, name) for name in ("tokens", "step_seconds", "hours", "gpu_hours")
    }  # fmt: skip
    figures["checkpoints"]["disk"] = plan.checkpoints.disk
    return figures


def tokens(value: float) -> str:
    """In billions or millions."""
    return f"{value / 1e9:,.2f} B" if value >= 1e9 else f"{value / 1e6:,.2f} M"


def _annealing(plan: Plan) -> Sequence[tuple[str, str, str]]:
    steps = plan.anneal_steps
    if steps is None:
        return []
    left = max(0, plan.course.steps - steps)
    return [
        (
            "annealing",
            f"{steps:,} steps",
            f"{left:,} steps, {tokens(left * plan.course.tokens_per_step)} tokens, follow at alpha = 0",
        )
    ]


def _communication(plan: Plan) -> Sequence[tuple[str, str, str]]:
    if plan.ranks == 1:
        return []
    traffic, seconds = plan.traffic, plan.traffic.seconds(plan.nodes)
    links = f"{plan.gpu.link / 1e9:.0f} GB/s inside a node" + f", {8 * ADAPTER / 1e9:.0f} Gb/s between nodes" * (
        plan.nodes > 1
    )
    told = (
        f"{(traffic.inside + traffic.between) / 1e9:.1f} GB per GPU and step, "
        f"{seconds / plan.course.step_seconds:.0%} of the computing that hides it ({links}, of which {REACHED:.0%} are "
        "reached: assumed)"
    )
    return [("communication", f"{duration(seconds)} a step", told)]


def _machine(plan: Plan) -> str:
    gpus = plan.ranks // plan.nodes
    return f"{plan.nodes} x {gpus} {plan.gpu.name}" if plan.nodes > 1 else f"{gpus} {plan.gpu.name}"
