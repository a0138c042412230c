"""Make token shards of documents: `python -m apps.prepare config=FILE key=value ...`

Reads documents (a Hugging Face dataset, parquet, JSONL, text files, an installed package), holds some of them out,
tokenizes them and writes one directory of token shards a source, which apps.train reads. A tokenizer is trained first
if asked for. Run the same command again after an interruption: it goes on where it was. See docs/prepare.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.prepare config=FILE")

from pathlib import Path

from apps._program import run
from topklm.data.prepare import prepare
from topklm.data.prepare_config import PrepareConfig
from topklm.data.shards import SPLITS, Manifest


def main(config: PrepareConfig) -> None:
    print_table(prepare(config), Path(config.out_dir))


def print_table(manifests: dict[str, Manifest], out_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"prepared in {out_dir}"), title_justify="left")
    for column in ("source", "split", "documents", "tokens", "bytes/token", "shards", "skipped"):
        table.add_column(column, justify="left" if column in ("source", "split", "skipped") else "right")
    for source, manifest in manifests.items():
        skipped = ", ".join(f"{n:,} {reason}" for reason, n in manifest.skipped.items()) or "none"
        for split in SPLITS:
            n = manifest.counts[split]
            table.add_row(
                source if split == SPLITS[0] else "",
                split,
                f"{n['documents']:,}",
                f"{n['tokens']:,}",
                f"{n['bytes_per_token']:.2f}" if n["bytes_per_token"] else "-",
                str(sum(shard.split == split for shard in manifest.shards)),
                skipped if split == SPLITS[0] else "",
            )
    Console().print(table)


if __name__ == "__main__":
    run(main, PrepareConfig, "prepare", __doc__ or "")
