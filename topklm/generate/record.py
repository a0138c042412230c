"""Completions as a JSON file with everything that made them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from topklm.generate.completion import Completion


def write_completions(
    path: Path, prompts: Sequence[str], results: list[list[Completion]], provenance: dict[str, Any]
) -> None:
    """Write {"provenance": ..., "prompts": [{"prompt", "prompt_ids", "samples": [...]}]}, whole or not at all."""
    record = {
        "provenance": provenance,
        "prompts": [
            {
                "prompt": prompt,
                "prompt_ids": samples[0].prompt_ids,
                "samples": [{k: v for k, v in asdict(c).items() if k != "prompt_ids"} for c in samples],
            }
            for prompt, samples in zip(prompts, results, strict=True)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
