"""Where neurons do not fire: bundles tell where they do, so for the rest the model is run on a few windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topklm.bundles import Bundle
from topklm.errors import CheckpointError
from topklm.interp.labels.corpus import BundleCorpus
from topklm.interp.statistics.collect_config import CollectConfig
from topklm.interp.statistics.layer_plan import plan_layers
from topklm.interp.statistics.reading import ReadTopK, read_layer
from topklm.interp.statistics.subject import Subject, load_subject
from topklm.interp.statistics.tap import tap

_BATCH_TOKENS = 2048


def subject_of(bundle: Bundle, ckpt: str | None, device: torch.device) -> Subject:
    """The model that a bundle was collected from. Raises `CheckpointError` if it is not there, or another."""
    meta = bundle.meta.model
    dtype: Any = {"float32": "fp32", "bfloat16": "bf16", "float64": "fp64"}[meta.dtype]
    path = ckpt or meta.path
    config = CollectConfig(ckpt=path, init=meta.init, alpha=meta.alpha, dtype=dtype)
    subject = load_subject(Path(path), config, device)
    if subject.source.sha256 != meta.sha256 or subject.source.dim != meta.dim:
        told = f"{path} is not the checkpoint of {bundle.path} ({meta.path}, {meta.sha256}); give it: ckpt=PATH"
        raise CheckpointError(told)
    return subject


def fires(
    bundle: Bundle, corpus: BundleCorpus, subject: Subject, windows: np.ndarray, neurons: Mapping[int, Sequence[int]]
) -> dict[int, np.ndarray]:
    """By layer bool [w, context, n]: in which tokens of some windows the given neurons of the layer fire, by the
    bundle's own reading."""
    reading = bundle.meta.reading
    cut = None if reading.read_topk is None else ReadTopK(**reading.read_topk)  # type: ignore[arg-type]
    plans = plan_layers(bundle.meta.model.n_layers, subject.loaded.topk, bundle.meta.model.alpha, reading.site, cut)
    rows: dict[int, list[np.ndarray]] = {layer: [] for layer in sorted(neurons)}

    def see(layer: int, output: Tensor, pre: Tensor | None, activation: Any) -> None:
        found = read_layer(
            output, pre, activation, alpha=bundle.meta.model.alpha, site=reading.site, cut=plans[layer].cut
        )
        fired = found.fired[:, list(neurons[layer])].cpu().numpy()
        rows[layer].append(fired.reshape(*output.shape[:2], -1))

    device = next(subject.model.parameters()).device
    size = max(1, _BATCH_TOKENS // corpus.context)
    with tap(subject.model, list(rows), see) as forward:
        for start in range(0, len(windows), size):
            some = windows[start : start + size].tolist()
            tokens = torch.from_numpy(np.stack([corpus.window(w) for w in some])).to(device)
            ids = None
            if bundle.meta.corpus.document_mask:
                ids = torch.from_numpy(np.stack([corpus.document_ids(w) for w in some])).to(device)
            forward(tokens, ids)
    return {layer: np.concatenate(found) for layer, found in rows.items()}
