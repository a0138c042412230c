"""The table of hours in docs/reproduce.md: `python -m tests.unit.configs.paper_hours` prints it."""

from __future__ import annotations

from pathlib import Path

from topklm.config import load_config
from topklm.train.config import TrainConfig
from topklm.train.throughput import PEAK_BF16_FLOPS, flops_per_token

CONFIGS = Path(__file__).parents[3] / "configs" / "paper"
GPUS = 8


def rows() -> list[tuple[str, float, float, float]]:
    """(configuration, parameters, FLOP per token, hours of a node at an MFU of 1) of every TopK configuration."""
    found = []
    for file in sorted(CONFIGS.glob("topk_*.yaml")):
        config = load_config(TrainConfig, [f"config={file}"])
        assert config.data.global_batch_size is not None
        flops = flops_per_token(config.model, config.data.seq_len)
        tokens = config.steps * config.data.global_batch_size * config.data.seq_len
        found.append(
            (file.stem, config.model.n_params, flops, tokens * flops / (GPUS * PEAK_BF16_FLOPS["H200"]) / 3600)
        )
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
