"""Write a model for others: `python -m apps.export to=hf ckpt=runs/quickstart/topk out=exports/topk`

to=hf: a directory for transformers (code, weights, tokenizer, model card); to=lingua: a checkpoint that Meta Lingua
loads; to=consolidated: one file of weights. An export is compared with the model before it takes its place.

Compare two forms of a model again: `python -m apps.export check a=runs/quickstart/topk b=exports/topk`
(keys: `python -m apps.export check --help`). Exit code 6: they do not compute the same. See docs/huggingface.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.export to=hf ckpt=PATH out=DIRECTORY")

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from apps._program import run, say, torch_device
from topklm.errors import Problem
from topklm.export import HuggingFaceConfig, ParityConfig

CHECK = """Compare two forms of a model: `python -m apps.export check a=runs/quickstart/topk b=exports/topk`

Logits, losses, next tokens, and the selections of every sparse block, on the same tokens. a is run by topklm; b by
transformers if it is a directory of Hugging Face, else by topklm. Exit code 6: they do not compute the same.
"""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(HuggingFaceConfig):
    """What is written, for whom, and where to."""

    to: Literal["hf", "lingua", "consolidated"] = "hf"
    """hf: Hugging Face transformers; lingua: Meta Lingua; consolidated: one .pth file with params.json."""
    ckpt: str = ""
    """A run's dump_dir, a checkpoint directory, a consolidated file, a Hugging Face directory, or a GGUF file."""
    out: str | None = None
    """Directory of the export; an earlier export in it is replaced. null, for to=consolidated only: `consolidated/` in
    the checkpoint."""
    overwrite: bool = False
    """Replace `out` even if it is no earlier export."""
    alpha: float | None = None
    """1 dense ... 0 TopK; null: the checkpoint's own."""
    parity: ParityConfig = field(default_factory=ParityConfig)
    """hf: the comparison of the export with the model."""

    def problems(self) -> Iterator[Problem]:
        if not self.ckpt:
            yield Problem("ckpt", "is missing: a run's dump_dir, a checkpoint, or a model of Hugging Face")
        if not self.out and self.to != "consolidated":
            yield Problem("out", "is missing: the directory of the export")


@dataclass(frozen=True, kw_only=True)
class CheckConfig(ParityConfig):
    """What is compared with what."""

    a: str = ""
    """Run by topklm: a run's dump_dir, a checkpoint, a consolidated file, a Hugging Face directory, or a GGUF file."""
    b: str = ""
    """The other form: a Hugging Face directory (run by transformers) or anything that a may be."""
    alpha: float | None = None
    """alpha of a; null: its checkpoint's own. An export has the alpha that it was made with."""
    trust_remote_code: bool = False
    """Run the code in b even if it is not the file that this version of topklm writes."""
    out: str | None = None
    """A JSON file for all figures."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        for key in ("a", "b"):
            if not getattr(self, key):
                yield Problem(key, "is missing: the two forms of the model, a=CHECKPOINT b=EXPORT")


def main(config: ExportConfig) -> None:
    from rich.console import Console

    from topklm.export import export_consolidated, export_huggingface, export_lingua, open_source
    from topklm.export.tables import rich_tables

    console = Console()
    out = Path(config.out) if config.out else None
    parity_config = dataclasses.replace(config.parity, device=str(torch_device(config.parity.device)))
    source = open_source(config.ckpt, config.alpha)
    if out is None or config.to == "consolidated":
        written = export_consolidated(source, out, overwrite=config.overwrite)
    elif config.to == "lingua":
        written = export_lingua(source, out, overwrite=config.overwrite)
    else:
        parity = export_huggingface(source, out, config, parity_config, overwrite=config.overwrite, progress=True)
        for table in rich_tables(parity):
            console.print(table)
        written = out
    say([], [written])


def check(config: CheckConfig) -> None:
    from rich.console import Console

    from topklm.export import check_parity
    from topklm.export.tables import rich_tables

    config = dataclasses.replace(config, device=str(torch_device(config.device)))
    parity = check_parity(
        config.a, config.b, config, alpha=config.alpha, trust_remote_code=config.trust_remote_code, progress=True
    )
    console = Console()
    for table in rich_tables(parity):
        console.print(table)
    if config.out is not None:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        Path(config.out).write_text(json.dumps(parity.to_dict(), indent=2) + "\n", encoding="utf-8")
    parity.demand()
    console.print("they compute the same")


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        run(check, CheckConfig, "export check", CHECK, sys.argv[2:])
    else:
        run(main, ExportConfig, "export", __doc__ or "")
