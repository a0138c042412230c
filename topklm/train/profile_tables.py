"""From the events of a profile to two tables: which part of a step takes how long, and which operations.

An event's own time is without that of the events inside it, so the parts of a CPU's step add up to its wall time. A
backward operation belongs to the part of the forward operation that it is the gradient of.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from torch.autograd import DeviceType

from topklm.report.table import Column, Table

WAITING_SCOPE, OPTIMIZER_SCOPE, TOPK_SCOPE = "step::wait_for_data", "step::optimizer", "step::topk"
"""Names that the trainer gives to stretches of a step."""
PARTS = (
    ("waiting for data", re.compile(WAITING_SCOPE)),
    ("optimizer", re.compile(rf"{OPTIMIZER_SCOPE}|^Optimizer\.")),
    ("loss", re.compile(r"CrossEntropy")),
    ("TopK", re.compile(rf"{TOPK_SCOPE}|topklm::|TopK|triton.*topk")),
    ("attention", re.compile(r"scaled_dot_product|ScaledDotProduct|flash_|fmha")),
    ("communication", re.compile(r"c10d::|nccl|gloo|^FSDP::|_c10d_functional")),
    ("matrix products", re.compile(r"aten::(mm|addmm|bmm|linear|matmul)$|mkldnn|gemm")),
    ("other operations", re.compile(r"^aten::|::|Backward|^triton|AccumulateGrad")),
)
"""Name of a part, and what names an operation of it, or one that contains it; the first that fits."""
REST = "Python between operations"
_STEP = "ProfilerStep"


def parts_table(events: Iterable[Any], wall_seconds: float, n_steps: int, device: str) -> Table:
    """The parts of a step. `events`: the profiler's; on a GPU its times are the device's, but for waiting for data."""
    on_gpu = device == "cuda"
    spent: dict[str, float] = defaultdict(float)
    events = [event for event in events if event.device_type == DeviceType.CPU]
    topk_nodes = _topk_nodes(events)
    main = {event.thread for event in events if event.name.startswith(_STEP)}
    for event in events:
        part = _part(event, topk_nodes)
        if on_gpu and part != "waiting for data":
            spent[part] += event.self_device_time_total
        elif event.thread in main:
            spent[part] += event.self_cpu_time_total
    total = 1e6 * wall_seconds
    rest = "device idle, or not attributed" if on_gpu else REST
    spent[rest] = total - sum(micros for part, micros in spent.items() if part != REST)
    rows: list[dict[str, Any]] = [
        {"part": part, "ms": spent[part] / n_steps / 1e3, "share": spent[part] / total}
        for part in [*(name for name, _ in PARTS), rest]
        if spent[part] > 0
    ]
    rows.append({"part": "step", "ms": total / n_steps / 1e3, "share": 1.0})
    columns = [Column("part", "part"), Column("ms", "ms per step", "{:.2f}"), Column("share", "share", "{:.1%}")]
    clock = "of the device" if on_gpu else "of the main thread"
    return Table("Where a step's time goes", f"time {clock}, mean of {n_steps} steps", columns, rows)


def operations_table(averages: Iterable[Any], n_steps: int, device: str) -> Table:
    """All operations by their own time, the longest first; memory is what they allocate less what they free."""
    side = "device" if device == "cuda" else "cpu"
    rows: list[dict[str, Any]] = [
        {
            "operation": average.key,
            "calls": average.count / n_steps,
            "ms": getattr(average, f"self_{side}_time_total") / n_steps / 1e3,
            "total_ms": getattr(average, f"{side}_time_total") / n_steps / 1e3,
            "mib": getattr(average, f"self_{side}_memory_usage") / n_steps / 2**20,
        }
        for average in averages
        if not average.key.startswith(_STEP)
    ]
    rows.sort(key=lambda row: -row["ms"])
    columns = [
        Column("operation", "operation"), Column("calls", "calls per step", "{:,.0f}"),
        Column("ms", "own ms per step", "{:.2f}"), Column("total_ms", "with what it calls", "{:.2f}"),
        Column("mib", "own MiB per step", "{:,.1f}"),
    ]  # fmt: skip
    return Table("Operations", f"per step, mean of {n_steps} steps", columns, rows)


def as_text(table: Table, most: int) -> str:
    """The first rows for a terminal, in columns."""
    lines = [[column.title for column in table.columns]]
    lines += [[table.cell(row, column) for column in table.columns] for row in table.rows[:most]]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    numbers = [table.is_number(column) for column in table.columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in lines
    )


def _topk_nodes(events: Iterable[Any]) -> set[int]:
    """Numbers of the autograd nodes that the activation made: what is the gradient of it."""
    makers = {e.sequence_nr: e for e in sorted(events, key=lambda e: e.time_range.start) if _is_forward(e)}
    return {number for number, event in makers.items() if _part(event, set()) == "TopK"}


def _part(event: Any, topk_nodes: set[int]) -> str:
    """By its own name and those of what contains it; of a backward operation by its forward operation first."""
    names, forward, node = [], False, None
    while event is not None:
        # A block that is computed again runs inside the backward operation that asked for it, and is no part of it.
        if not (forward and event.fwd_thread > 0):
            names.append(event.name)
            node = event.sequence_nr if event.fwd_thread > 0 else node
        forward = forward or _is_forward(event)
        event = event.cpu_parent
    if node in topk_nodes:
        return "TopK"
    return next((part for part, pattern in PARTS if any(map(pattern.search, names))), REST)


def _is_forward(event: Any) -> bool:
    """Whether it is an operation that autograd follows. Of several with one number the last has made the node."""
    return event.sequence_nr >= 0 and event.fwd_thread == 0
