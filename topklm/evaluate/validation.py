"""Perplexity and bits per byte on the held-out shards, and the health of the sparse layers on the same windows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from topklm.data import HeldOut, Tokenizer, ValidationBatch, Windows, n_batches, open_held_out, validation_batches
from topklm.errors import DataError
from topklm.evaluate.config import ValidationConfig
from topklm.sparsity import get_alpha, record_health
from topklm.sparsity.health import Health

log = logging.getLogger("topklm.evaluate")

HEALTH_TOKENS = 65_536
"""Health figures are taken over at most about so many held-out tokens, because they run uncompiled."""

NATS, TEXT_NATS, TOKENS, BYTES = range(4)
ALL = "*"
"""Where a figure of all sources together stands among those of each."""


@dataclass(frozen=True)
class View:
    """The losses of all scored tokens under one way of windowing, summed by document."""

    windows: Windows
    sums: np.ndarray
    """float64 [n_documents, 4], documents of all sources one after the other: nats of all scored tokens; nats of those
    that are text, not BOS or EOS; scored tokens; bytes of text of the scored tokens."""


@dataclass(frozen=True)
class Validation:
    """What validation found; the same on every rank."""

    held_out: HeldOut
    views: dict[str, View]
    """By `Windows.view`."""
    health: dict[str, float]
    """`topk/...` and `val/alpha`; empty for a dense model."""

    @property
    def figures(self) -> dict[str, float]:
        """For each view V: `val/loss@V` (nats per token), `val/ppl@V` (its exponential), `val/bpb@V` (bits per byte of
        text), `val/tokens@V` (tokens scored); with several sources also `val/<source>/...`."""
        figures: dict[str, float] = {}
        for view, sources in self.tables().items():
            for source, row in sources.items():
                prefix = "val" if source == ALL else f"val/{source}"
                figures |= {f"{prefix}/{key}@{view}": row[key] for key in ("loss", "ppl", "bpb", "tokens")}
        return figures | self.health

    def tables(self) -> dict[str, dict[str, dict[str, float]]]:
        """By view and source (`ALL`, and each of several): loss, ppl, bpb, their standard errors, what was scored.

        Standard errors are over documents, which are taken as drawn at random: those of a ratio of two sums.
        """
        scale = self.held_out.bytes_scale
        first = self.held_out.first_document
        tables = {}
        for name, view in self.views.items():
            parts = {}
            for i, source in enumerate(self.held_out.names):
                parts[source] = view.sums[first[i] : first[i + 1]] * [1, 1, 1, scale[source]]
            scored = {source: part for source, part in parts.items() if part[:, TOKENS].any()}
            rows = {ALL: np.concatenate(list(scored.values()))} | (scored if len(parts) > 1 else {})
            tables[name] = {source: _row(part) for source, part in rows.items()}
        return tables

    def content(self) -> dict[str, Any]:
        """For `validation.json`; what is not a finite number is null there."""
        held_out = self.held_out
        return {
            "figures": _finite(self.figures),
            "held_out": {
                "fingerprint": held_out.fingerprint,
                "tokenizer_sha256": held_out.tokenizer_sha256,
                "bytes_scale": held_out.bytes_scale,
            },
            "views": {
                name: {"windows": asdict(view.windows), "sources": {key: _finite(row) for key, row in table.items()}}
                for (name, view), table in zip(self.views.items(), self.tables().values(), strict=True)
            },
        }

    def logs(self) -> dict[str, Iterator[dict[str, Any]]]:
        """For each view the lines of its log, one a document of which tokens were scored."""
        return {name: self._lines(view) for name, view in self.views.items()}

    def _lines(self, view: View) -> Iterator[dict[str, Any]]:
        first = self.held_out.first_document
        for i, (source, array) in enumerate(self.held_out.arrays.items()):
            offsets = self.held_out.offsets[source]
            scale = self.held_out.bytes_scale[source]
            for document in range(array.n_documents):
                nats, text_nats, tokens, n_bytes = view.sums[first[i] + document].tolist()
                if not tokens:
                    continue
                ids = array.read(int(offsets[document]), int(offsets[document + 1]))
                yield {
                    "source": source,
                    "document": document,
                    "hash": sha256(ids.astype("<u4").tobytes()).hexdigest()[:16],
                    "tokens": int(tokens),
                    "bytes": n_bytes * scale if scale != 1 else int(n_bytes),
                    "nats": nats,
                    "text_nats": text_nats,
                }


def _finite(figures: dict[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in figures.items()}


def _row(sums: np.ndarray) -> dict[str, float]:
    """The figures of documents' sums [n, 4]."""
    used = sums[sums[:, TOKENS] > 0]
    nats, text_nats, tokens, n_bytes = used.sum(0).tolist()
    loss = nats / tokens
    loss_stderr = ratio_stderr(used[:, NATS], used[:, TOKENS])
    bits = used[:, TEXT_NATS] / math.log(2)
    perplexity = math.exp(min(loss, 700.0))  # exp overflows above 709
    return {
        "loss": loss,
        "loss_stderr": loss_stderr,
        "ppl": perplexity,
        "ppl_stderr": perplexity * loss_stderr,  # the delta method: d exp(x) = exp(x) dx
        "bpb": text_nats / math.log(2) / n_bytes if n_bytes else math.nan,
        "bpb_stderr": ratio_stderr(bits, used[:, BYTES]) if n_bytes else math.nan,
        "documents": len(used),
        "tokens": int(tokens),
        "bytes": n_bytes,
    }


def ratio_stderr(above: np.ndarray, below: np.ndarray) -> float:
    """Standard error of sum(above) / sum(below) over n units [n] drawn at random; NaN for fewer than two units.

    The linearisation of a ratio estimator: sqrt(n / (n - 1) sum (a_i - r b_i)^2) / sum b. See Cochran, Sampling
    Techniques, section 6.4.
    """
    n = len(above)
    if n < 2:
        return math.nan
    ratio = above.sum() / below.sum()
    return float(np.sqrt(n / (n - 1) * ((above - ratio * below) ** 2).sum()) / below.sum())


@torch.no_grad()
def validate(
    model: nn.Module,
    held_out: HeldOut,
    windows: Sequence[Windows],
    *,
    batch_size: int,
    device: torch.device,
    document_mask: bool = False,
    rank: int = 0,
    world_size: int = 1,
    on_batch: Callable[[], None] = lambda: None,
) -> Validation:
    """Losses of a model at its present alpha, the same on every rank and for any number of ranks and batch size.

    One pass for each element of `windows`; for a sparse model one more for its health, over at most `HEALTH_TOKENS`
    in windows of the first context. `document_mask`: attention stays inside a document. `on_batch` is called after
    each batch. Raises `DataError` where nothing is held out.
    """
    run = _Pass(model, held_out, batch_size, device, document_mask, rank, world_size, on_batch)
    was_training = model.training
    model.eval()
    views = {each.view: View(each, run.sums(each)) for each in windows}
    health: dict[str, float] = {}
    if get_alpha(model) is not None:
        with record_health(model) as counts:
            run.count_health(health_windows(windows[0]), counts)
        if world_size > 1:
            counts.all_reduce()
        health = counts.summary()
        # The training line of the same step has the alpha of the step that was made, this is the one after it.
        health["val/alpha"] = health.pop("topk/alpha")
    model.train(was_training)
    return Validation(held_out, views, health)


def health_windows(windows: Windows) -> Windows:
    """Windows for the health figures: the same context, not overlapping, a part of the tokens."""
    return Windows(context=windows.context, max_tokens=min(windows.max_tokens or HEALTH_TOKENS, HEALTH_TOKENS))


def windows_of(settings: ValidationConfig, default_context: int) -> list[Windows]:
    """The windows that a configuration asks for; its contexts, or the default if it names none."""
    return [
        Windows(context=context, stride=settings.stride, documents=settings.documents, max_tokens=settings.max_tokens)
        for context in settings.contexts or [default_context]
    ]


def validate_checkpoint(
    model: nn.Module,
    tokenizer: Tokenizer,
    root_dir: str | Path,
    sources: Sequence[str] | None = None,
    *,
    settings: ValidationConfig,
    context: int,
    batch_size: int,
    device: torch.device,
    document_mask: bool = False,
    rank: int = 0,
    world_size: int = 1,
    on_batch: Callable[[], None] = lambda: None,
) -> Validation:
    """`validate` for a loaded model, on the held-out part of the sources in `root_dir` (None: all of them).

    `context` is used where `settings` names none. Every rank calls it and gets the same. Raises `DataError` if the
    tokens there were not made with the model's `tokenizer`.
    """
    held_out = open_held_out(root_dir, sources)
    if held_out.tokenizer_sha256 != tokenizer.sha256:
        raise DataError(
            f"the sources in {root_dir} were prepared with tokenizer {held_out.tokenizer_sha256[:12]}, the checkpoint "
            f"has {tokenizer.sha256[:12]}; prepare the same text with the checkpoint's tokenizer"
        )
    windows = windows_of(settings, context)
    return validate(
        model, held_out, windows, batch_size=settings.batch_size or batch_size, device=device,
        document_mask=document_mask, rank=rank, world_size=world_size, on_batch=on_batch,
    )  # fmt: skip


@dataclass(frozen=True)
class _Pass:
    """What all passes over the held-out windows share."""

    model: nn.Module
    held_out: HeldOut
    batch_size: int
    device: torch.device
    document_mask: bool
    rank: int
    world_size: int
    on_batch: Callable[[], None]

    def sums(self, windows: Windows) -> np.ndarray:
        """The sums of `View`, over all ranks."""
        n_documents = int(self.held_out.first_document[-1])
        nats = torch.zeros(n_documents, 2, dtype=torch.float64, device=self.device)
        counts = np.zeros((n_documents, 2))
        for batch in self._batches(windows):
            documents, is_text, n_bytes = self._describe(batch)  # [b, T] each
            scored = documents >= 0
            np.add.at(counts, documents[scored], np.stack((np.ones(scored.sum()), n_bytes[scored]), 1))
            losses = self._losses(batch)  # [b, T], 0 where it is not scored
            both = torch.stack((losses, losses * torch.from_numpy(is_text).to(self.device)), -1).double()  # [b, T, 2]
            index = torch.from_numpy(documents).clamp(min=0).to(self.device)
            nats.index_add_(0, index.flatten(), both.flatten(0, 1))
        sums = torch.cat((nats, torch.from_numpy(counts).to(self.device)), 1)
        if self.world_size > 1:
            dist.all_reduce(sums)
        return sums.cpu().numpy()

    def count_health(self, windows: Windows, health: Health) -> None:
        for batch in self._batches(windows):
            health.count_only((batch.targets >= 0).to(self.device))
            self._losses(batch)

    def _batches(self, windows: Windows) -> Iterator[ValidationBatch]:
        # In windows of one document there is nothing to mask.
        mask = self.document_mask and not windows.documents
        for batch in validation_batches(
            self.held_out, windows, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size,
            with_document_ids=mask,
        ):  # fmt: skip
            yield batch
            self.on_batch()

    def _losses(self, batch: ValidationBatch) -> Tensor:
        batch = batch.to(self.device)
        return self.model(batch.tokens, batch.targets, document_ids=batch.document_ids, reduction="none")

    def _describe(self, batch: ValidationBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Document (-1 where not scored), whether it is text, and bytes of each target, [b, T]."""
        targets, source, start = batch.targets.numpy(), batch.source.numpy(), batch.start.numpy()
        documents, n_bytes = np.full_like(targets, -1), np.zeros_like(targets)
        positions = start[:, None] + 1 + np.arange(targets.shape[1])  # [b, T]
        for number in np.unique(source[source >= 0]):
            mine = (source[:, None] == number) & (targets >= 0)
            documents[mine] = self.held_out.documents(number, positions[mine])
            n_bytes[mine] = self.held_out.n_bytes(number, positions[mine], targets[mine])
        return documents, self.held_out.is_text(targets), n_bytes


def n_validation_batches(
    model: nn.Module, held_out: HeldOut, windows: Sequence[Windows], *, batch_size: int, world_size: int
) -> int:
    """How often `validate` will call its `on_batch`: for a progress bar."""
    passes = [*windows, *([health_windows(windows[0])] if get_alpha(model) is not None else [])]
    return sum(n_batches(held_out, each, batch_size=batch_size, world_size=world_size) for each in passes)
