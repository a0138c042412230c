"""The table of hours in docs/reproduce.md: `python -m tests.unit.configs.paper_hours` prints it."""

from __future__ import annotations

from pathlib import Path

from topklm.budget.course import course_of
from topklm.config import load_config
from topklm.train.config import TrainConfig
from topklm.train.throughput import PEAK_BF16_FLOPS

CONFIGS = Path(__file__).parents[3] / "configs" / "paper"
GPUS = 8


def rows() -> list[tuple[str, float, float, float]]:
    """(configuration, parameters, FLOP per token, hours of a node at an MFU of 1) of every TopK configuration."""
    found = []
    for file in sorted(CONFIGS.glob("topk_*.yaml")):
        config = load_config(TrainConfig, [f"config={file}"])
        course = course_of(config, config.model, GPUS, PEAK_BF16_FLOPS["H200"])
        found.append((file.stem, config.model.n_params, course.flops_per_token, course.hours))
    return sorted(found, key=lambda row: row[2])  # the cheapest first


def lines() -> list[str]:
    """The rows of the table."""
    return [
        f"| `{name}` | {parameters / 1e6:,.1f} | {flops / 1e9:.2f} | "
        + " | ".join(f"{hours / mfu:.1f}" for mfu in (0.35, 0.45, 0.55)) + " |"
        for name, parameters, flops, hours in rows()
    ]  # fmt: skip


def all_pairs() -> int:
    """Hours of the six pairs of twins at 45 %."""
    return round(sum(2 * hours / 0.45 for name, _, _, hours in rows() if "lingua" not in name))


if __name__ == "__main__":
    print("\n".join(lines()), f"All six pairs: {all_pairs()} hours at 45 %.", sep="\n")
