"""The loss of each token of some windows, with the model as it is or changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from topklm.errors import NonFiniteError
from topklm.interp.interventions import Intervention, intervene
from topklm.interp.labels.corpus import BundleCorpus
from topklm.model import Transformer

TOKENS = {"cpu": 2048, "cuda": 32_768}
"""In a forward pass, where the batch size is not given."""


class Reader:
    """Windows of a bundle's corpus as a model reads them: each a sequence of its own, T - 1 tokens of it predicted."""

    def __init__(self, model: Transformer, corpus: BundleCorpus, batch_size: int | None) -> None:
        self.model, self.corpus = model, corpus
        self.device = model.head_weight.device
        self.rows = batch_size or max(1, TOKENS.get(self.device.type, 2048) // corpus.context)

    def batches(self, starts: Sequence[int]) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """(which of `starts`, tokens [B, T], document ids [B, T] or None)."""
        masked = self.corpus.bundle.meta.corpus.document_mask
        for first in range(0, len(starts), self.rows):
            some = slice(first, min(first + self.rows, len(starts)))
            tokens = np.stack([self.corpus.window(int(start)) for start in starts[some]])
            ids = np.stack([self.corpus.document_ids(int(start)) for start in starts[some]]) if masked else None
            yield (
                some,
                torch.from_numpy(tokens).to(self.device),
                None if ids is None else torch.from_numpy(ids).to(self.device),
            )

    @torch.no_grad()
    def losses(self, starts: Sequence[int], interventions: Sequence[Intervention] = ()) -> np.ndarray:
        """float64 [w, T - 1]: -ln p of each token but the first of each window, in nats.

        Raises `NonFiniteError` if one is not finite.
        """
        found = np.empty((len(starts), self.corpus.context - 1))
        with intervene(self.model, interventions):
            for some, tokens, ids in self.batches(starts):
                inputs = None if ids is None else ids[:, :-1]
                made = self.model(tokens[:, :-1], tokens[:, 1:], document_ids=inputs, reduction="none")
                found[some] = made.double().cpu().numpy()
        if not np.isfinite(found).all():
            shown = "; ".join(one.describe() for one in interventions) or "the model as it is"
            raise NonFiniteError(f"the loss is not finite ({shown}); nothing can be said of it")
        return found
