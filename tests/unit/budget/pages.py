"""The tables of docs/plan.md and docs/scaling.md, computed by the planner.

python -m tests.unit.budget.pages      # writes them into the pages
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from topklm.budget import PlanConfig, make_plan
from topklm.budget.course import STATE_BYTES, course_of
from topklm.budget.gpus import find_gpu
from topklm.budget.memory import needed
from topklm.budget.network import ADAPTER, REACHED, traffic_of
from topklm.budget.plan import Plan
from topklm.budget.search import MODES, largest_micro_batch
from topklm.budget.setting import Setting, setting_of
from topklm.config import build, load_config
from topklm.sparsity.selection import record_dtype

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "configs" / "paper"
GPU = find_gpu("h200")
NODE = 8
RATES = (
    f"Rates: NVLink {GPU.link / 1e9:.0f} GB/s in each direction of a GPU (the 900 GB/s class), between nodes "
    f"{8 * ADAPTER / 1e9:.0f} Gb/s for each GPU, of both {REACHED:.0%} reached (an assumption); {NODE} H200 a node, "
    f"MFU {PlanConfig.mfu:.0%} (an assumption). Sequences of 2,048 tokens."
)

# Shapes of the Llama family, beside the smallest and the largest of the paper. Sequences of a step: the paper's 512 of
# 2,048 tokens (1 M), and 4 M tokens for the larger ones.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "topk_d1024_l8": ({"dim": 1024, "n_layers": 8, "n_heads": 16, "ffn_dim": 2816}, 512),
    "topk_d2048_l24_lingua_ffn": ({"dim": 2048, "n_layers": 24, "n_heads": 16}, 512),
    "7 B": ({"dim": 4096, "n_layers": 32, "n_heads": 32, "ffn_dim": 11008}, 2048),
    "13 B": ({"dim": 5120, "n_layers": 40, "n_heads": 40, "ffn_dim": 13824}, 2048),
    "70 B": ({"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "ffn_dim": 28672}, 2048),
}


def run(model: dict[str, Any], sequences: int | None, **distributed: Any) -> PlanConfig:
    """A run of a model of 32,000 pieces with sequences of 2,048 tokens."""
    return build(PlanConfig, {
        "dump_dir": "x",
        "data": {"root_dir": "x", "sources": {"x": 1.0}, "batch_size": 1, "global_batch_size": sequences},
        "model": {"vocab_size": 32000, **model},
        "topk": {"k": 64},
        "distributed": {"compile": True, "activation_checkpointing": "selective", **distributed},
    })  # fmt: skip


def fits(setting: Setting) -> bool:
    """With the slack that apps.plan assumes."""
    return needed(setting, PlanConfig.slack, PlanConfig.context_gib * 2**30) <= GPU.memory


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1), *lines])


def paper() -> str:
    """Every configuration of the paper."""
    rows = []
    for file in sorted(PAPER.glob("*_d*.yaml"), key=lambda file: (file.stem.split("_", 1)[1], file.stem)):
        plan: Plan = make_plan(load_config(PlanConfig, [f"config={file}", "data.root_dir=/none"]))
        course, saved = plan.course, plan.checkpoints
        rows.append((
            f"`{plan.name}`", f"{sum(plan.parameters.values()) / 1e6:,.1f}", f"{course.flops_per_token / 1e9:.2f}",
            *(f"{mode.needed / 2**30:.1f}" for mode in plan.modes), "yes" if plan.fits else "NO", plan.mode.largest,
            f"{course.tokens_per_second / 1e6:.2f}", f"{course.hours:.1f}", f"{course.gpu_hours:.0f}",
            f"{saved.bytes / 1e9:.1f}", f"{saved.disk / 1e9:.0f}",
        ))  # fmt: skip
    head = (
        "", "parameters (M)", "GFLOP a token", "none", "selective", "full", "fits", "largest batch_size",
        "M tokens/s at 45 %", "hours", "GPU-hours", "checkpoint (GB)", "disk (GB)",
    )  # fmt: skip
    return table(head, rows)


def wire() -> str:
    """Communication against computation."""
    rows = []
    for name, (model, sequences) in MODELS.items():
        for nodes in (1, 4, 16, 64):
            ranks, cells = nodes * NODE, []
            for spread in ({"dp_replicate": nodes}, {}):
                config = run(model, sequences, **spread)
                size = largest_micro_batch(config.train, config.model, ranks, fits)
                if size is None:
                    cells.append(None)
                    continue
                config = replace(config, data=replace(config.data, batch_size=size))
                setting = setting_of(config.train, config.model, ranks)
                course = course_of(config.train, config.model, ranks, GPU.peak * config.mfu)
                traffic = traffic_of(setting, NODE, GPU.link)
                cells.append((setting, course.step_seconds, traffic, traffic.seconds(nodes)))
            first = next((cell for cell in cells if cell), None)
            shown = "does not fit" if first is None else f"{first[0].micro_batches} x {first[0].sequences}"
            rows.append((
                name, ranks, shown, "" if first is None else f"{first[1]:.3f}",
                *(_traffic(cells[0]) if cells[0] else ("", "", "does not fit")), _share(cells[1]),
            ))  # fmt: skip
    head = (
        "", "GPUs", "micro-batches x sequences", "computing (s)", "HSDP: GB inside a node", "GB between nodes",
        "of computing", "full sharding: of computing",
    )  # fmt: skip
    return f"{RATES}\n\n{table(head, rows)}"


def _traffic(cell: tuple[Any, ...]) -> tuple[str, str, str]:
    _, _, traffic, _ = cell
    return f"{traffic.inside / 1e9:.1f}", f"{traffic.between / 1e9:.2f}", _share(cell)


def _share(cell: tuple[Any, ...] | None) -> str:
    if cell is None:
        return "does not fit"
    share = cell[3] / cell[1]
    return f"**{share:.0%}**" if share > 0.5 else f"{share:.0%}"


def memory() -> str:
    """The largest models."""
    places = ((1, "1 GPU"), (8, "1 node"), (64, "8 nodes"), (512, "64 nodes"))
    return table(
        ("sharded over", *MODES), [(where, *(_largest(ranks, mode) for mode in MODES)) for ranks, where in places]
    )


def _largest(ranks: int, mode: str) -> str:
    """The widest of the family L = D / 128."""

    def config(layers: int) -> PlanConfig:
        model = {"dim": 128 * layers, "n_layers": layers, "n_heads": layers}
        return run(model, ranks, activation_checkpointing=mode)

    def fit(layers: int) -> bool:
        tried = config(layers)
        return fits(setting_of(tried.train, tried.model, ranks))

    low, high = 4, 8
    while fit(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fit(middle) else (low, middle)
    return f"{config(low).model.n_params / 1e9:,.1f} ({128 * low:,} x {low})"


def files() -> str:
    """Checkpoints and data of 64 nodes."""
    rows, nodes = [], 64
    for name, (model, sequences) in MODELS.items():
        config = run(model, sequences)
        ranks = nodes * NODE
        course = course_of(config.train, config.model, ranks, GPU.peak * config.mfu)
        size = STATE_BYTES * config.model.n_params
        rows.append((
            name, f"{size / 1e9:,.0f}", f"{size / ranks / 1e6:,.0f}",
            *(f"{size / (nodes * rate * 1e9):.2f}" for rate in (0.5, 2, 10)),
            f"{size / 50e9:.1f}", f"{2 * course.tokens_per_second / ranks / 1e3:,.0f}",
        ))  # fmt: skip
    head = (
        "", "a checkpoint (GB)", "of each rank (MB)", "s at 0.5 GB/s a node", "at 2", "at 10",
        "s at 50 GB/s for all nodes", "tokens read (kB/s a rank)",
    )  # fmt: skip
    return table(head, rows)


def stream() -> str:
    """Messages of a pipeline."""
    rows, tokens = [], 16 * 2048
    for dim, k in ((1024, 64), (2048, 64), (4096, 64), (8192, 128)):
        dense, forward, backward = 2 * dim, k * (2 + record_dtype(dim).itemsize), 2 * k
        rows.append((
            f"{dim:,}", k, f"{dense:,}", forward, backward, f"{2 * dense / (forward + backward):.0f} x",
            f"{tokens * dense / 1e6:.0f}", f"{tokens * forward / 1e6:.1f}",
            f"{1e3 * tokens * dense / (ADAPTER * REACHED):.2f}", f"{1e3 * tokens * forward / (ADAPTER * REACHED):.2f}",
        ))  # fmt: skip
    head = (
        "D", "k", "dense (bytes a token)", "sparse, forward", "sparse, backward", "less, both ways",
        "MB for 16 x 2,048 tokens", "sparse", "ms through an adapter", "sparse",
    )  # fmt: skip
    return table(head, rows)


def page(name: str) -> str:
    """A page with the tables of now."""
    text = (ROOT / "docs" / f"{name}.md").read_text()
    for section in {"plan": (paper,), "scaling": (wire, memory, files, stream)}[name]:
        begin = f"<!-- {section.__name__}: begin (python -m tests.unit.budget.pages) -->"
        end = f"<!-- {section.__name__}: end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{section()}\n{end}{after}"
    return text


if __name__ == "__main__":
    for name in ("plan", "scaling"):
        (ROOT / "docs" / f"{name}.md").write_text(page(name))
