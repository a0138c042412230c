"""The model that is exported or compared, and what is known of its data and training."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from topklm import __version__
from topklm.checkpoint import LoadedConfig, load_model
from topklm.checkpoint.trained_with import trained_with
from topklm.data import HeldOut, Manifest, Tokenizer, open_held_out, read_manifest
from topklm.errors import DataError
from topklm.model import Transformer

log = logging.getLogger("topklm.export")
_TEXT_BYTES = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Source:
    """A loaded model with its surroundings. Make one with `open_source`."""

    model: Transformer
    """In eval mode, fp32."""
    tokenizer: Tokenizer | None
    """None where none is stored."""
    config: LoadedConfig
    """What it is and where it comes from."""
    manifests: dict[str, Manifest] = field(default_factory=dict)
    """Its prepared sources, by name; empty where they are not at hand."""
    held_out: HeldOut | None = None
    """Their held-out part, if it is at hand and made with this tokenizer."""

    @property
    def name(self) -> str:
        """Name of the run, else of the file or directory."""
        return str(self.config.run.get("name") or self.config.path.name)

    @property
    def is_sparse(self) -> bool:
        """Whether any block is sparse (a `topk` section whose dense tail is the whole stack is not)."""
        return self.config.alpha is not None

    def round_to(self, dtype: torch.dtype) -> None:
        """Round the model's weights to what `dtype` can hold; they stay fp32."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(parameter.to(dtype))

    def adds_bos(self) -> bool:
        """Whether a text begins with BOS, as it did in training.

        As the run or the prepared sources say; else as a Hugging Face tokenizer does by itself; else if there is a
        BOS, which is what `apps.prepare` and Meta Lingua do unless told otherwise.
        """
        if self.tokenizer is None or self.tokenizer.bos_id is None:
            return False
        stated, _ = trained_with(self.config.run, self.config.path)
        if stated is not None:
            return stated
        if self.tokenizer.name == "hf":
            from topklm.export.tokenizer import fast_tokenizer

            return fast_tokenizer(self.tokenizer).encode("a").ids[:1] == [self.tokenizer.bos_id]
        log.info("the prepared data is not at hand: assuming that documents began with BOS (add_bos=false if not)")
        return True

    def texts(self) -> Iterator[str]:
        """Held-out documents as text, 2 MB at most; none where there is no held-out part."""
        if self.held_out is None or self.tokenizer is None:
            return
        left = _TEXT_BYTES
        for name, array in self.held_out.arrays.items():
            offsets = self.held_out.offsets[name]
            for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                text = self.tokenizer.decode(array.read(start, stop).tolist())
                left -= len(text)
                if left < 0:
                    return
                yield text

    def metrics(self) -> dict[str, Any]:
        """The last line of the run's metrics.jsonl with a validation, up to the step of the weights; else empty.

        Empty too if that was at another alpha: it is another model then.
        """
        found: dict[str, Any] = {}
        run = next((p.parent for p in self.config.path.parents if p.name == "checkpoints"), None)
        file = None if run is None else run / "metrics.jsonl"
        known = file is not None and file.is_file() and self.config.step
        for line in file.read_text(encoding="utf-8").splitlines() if file is not None and known else []:
            try:
                figures = json.loads(line)
            except ValueError:  # cut off by a crash
                continue
            is_validation = any(key.startswith("val/loss") for key in figures)
            if is_validation and figures.get("global_step", 0) <= (self.config.step or 0):
                found = figures
        same_alpha = found.get("val/alpha") == self.config.alpha
        return found if same_alpha else {}

    def tokens_seen(self) -> int | None:
        """Training tokens that the weights have seen, or None."""
        data = self.config.run.get("data") or {}
        rows, length = data.get("global_batch_size"), data.get("seq_len")
        if self.config.step is None or not isinstance(rows, int) or not isinstance(length, int):
            return None
        return self.config.step * rows * length

    def facts(self, to: str, **more: Any) -> dict[str, Any]:
        """Provenance for `export.json` and the card. No paths: exports are published."""
        return {
            "to": to,
            "topklm": __version__,
            "torch": torch.__version__,
            "run": self.name,
            "step": self.config.step,
            "checkpoint_sha256": self.config.sha256,
            "tokenizer_sha256": self.tokenizer.sha256 if self.tokenizer is not None else None,
            "alpha": self.config.alpha,
            **more,
        }


def open_source(path: str | Path, alpha: float | None = None) -> Source:
    """Load what `load_model` takes, in fp32 on the CPU, and find its data if it lies where the run had it."""
    model, tokenizer, config = load_model(path, alpha=alpha)
    data = config.run.get("data") or {}
    root, names = Path(str(data.get("root_dir") or "")), sorted(data.get("sources") or {})
    manifests, held_out = {}, None
    if names and all((root / name).is_dir() for name in names):
        try:
            manifests = {name: read_manifest(root / name) for name in names}
            held_out = open_held_out(root, names)
        except DataError as error:
            log.warning("the data of this run cannot be used for the comparison: %s", error)
    other = [n for n, m in manifests.items() if tokenizer is None or m.tokenizer.get("sha256") != tokenizer.sha256]
    if other:
        log.warning("%s was prepared anew with another tokenizer and is not looked at", ", ".join(other))
        manifests, held_out = {}, None
    return Source(model=model, tokenizer=tokenizer, config=config, manifests=manifests, held_out=held_out)
