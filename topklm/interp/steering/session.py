"""A plan with its model: percentiles that a bundle did not give, and the texts of every cell."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topklm.checkpoint.load import LoadedConfig
from topklm.errors import ConfigError, DataError, Problem
from topklm.interp.progress import PassProgress
from topklm.interp.statistics.collect_config import token_count
from topklm.interp.statistics.windows import WindowPlan, plan_windows
from topklm.interp.steering.config import DoseConfig, SteerConfig
from topklm.interp.steering.dose import cells, write_cells
from topklm.interp.steering.plan import Plan, with_scales, with_written
from topklm.interp.steering.samples import SampleStore
from topklm.interp.steering.scale import measured_scales
from topklm.interp.steering.texts import Writer
from topklm.model import Transformer

log = logging.getLogger("topklm.interp")
BATCH_TOKENS = 4096


def make_texts(
    config: SteerConfig, plan: Plan, model: Transformer, loaded: LoadedConfig, bos: bool
) -> tuple[Plan, SampleStore]:
    """Make every text of a plan that is not there already, with a progress bar; (the plan with percentiles, the texts).

    Raises `ConfigError` if the bundle is of another alpha, or `out` holds texts of other settings.
    """
    if problem := _other_alpha(config, plan, loaded):
        raise ConfigError([problem])
    if any(not target.offsets for target in plan.targets):
        plan = _with_measured(config, plan, model, loaded)
    if isinstance(config, DoseConfig):
        plan = with_written(plan, model, config)
    context = loaded.model.max_seqlen
    directory = None if config.out is None else Path(config.out)
    store = SampleStore(directory, settings_of(config, loaded, plan, bos), config.n_samples, config.overwrite)
    writer = Writer(
        model, plan.tokenizer, config.prompt, config.sampling(), bos=bos, batch_size=config.batch_size, context=context
    )
    n_cells = sum(1 for _ in cells(plan))
    with PassProgress("steer", n_cells * config.n_samples, True, unit="texts") as progress:
        write_cells(
            plan, writer, store,
            lambda there: (progress.skip if there else progress.advance)(config.n_samples),
        )  # fmt: skip
    return plan, store


def settings_of(config: SteerConfig, loaded: LoadedConfig, plan: Plan, bos: bool) -> dict[str, Any]:
    """Everything that a text depends on beside its neuron, its offset and its number."""
    return {
        "checkpoint": {"path": str(loaded.path.resolve()), "step": loaded.step, "sha256": loaded.sha256},
        "tokenizer": plan.tokenizer.sha256,
        "alpha": loaded.alpha,
        "prompt": config.prompt,
        "bos": bos,
        "sampling": asdict(config.sampling()),
        "steering": "added to the pre-activation at every position",
        "batch_size": config.batch_size,
        "dtype": config.dtype,
    }


def _other_alpha(config: SteerConfig, plan: Plan, loaded: LoadedConfig) -> Problem | None:
    if plan.bundle is None or plan.bundle.meta.model.alpha == loaded.alpha:
        return None
    told = f"{config.bundle} was collected at alpha {plan.bundle.meta.model.alpha}, the model runs at {loaded.alpha}"
    if config.force:
        log.warning("%s; taken all the same", told)
        return None
    return Problem("bundle", f"{told}; collect one at that alpha, or take it with force=true")


def _with_measured(config: SteerConfig, plan: Plan, model: Transformer, loaded: LoadedConfig) -> Plan:
    """The plan with the exact percentiles on held-out text."""
    trained = loaded.run.get("data") or {}
    root = config.data or trained.get("root_dir")
    if not root:
        advice = "give a bundle, or prepared data (data=DIR), to measure its percentile on"
        raise ConfigError([Problem("offset", f"a multiple needs the neuron's activations: {advice}")])
    windows = plan_windows(
        Path(root), [] if config.data else list(trained.get("sources") or {}), "val",
        context=int(trained.get("seq_len") or loaded.model.max_seqlen), tokens=token_count(config.data_tokens) or 0,
        snapshots=[], halves=False, document_mask=loaded.model.document_mask,
    )  # fmt: skip
    if windows.corpus.tokenizer_sha256 != plan.tokenizer.sha256:
        raise DataError(f"{root} was prepared with another tokenizer than the model's; give other data")
    device = model.head_weight.device
    with PassProgress("percentiles", windows.n_tokens, True) as progress:
        scales = measured_scales(
            model, _batches(windows, device), [target.neuron for target in plan.targets], config.percentile,
            progress.advance,
        )  # fmt: skip
    for neuron, scale in scales.items():
        log.info("%s: %s over %s held-out tokens", neuron, scale.words, f"{scale.n_tokens:,}")
    return with_scales(plan, scales)


def _batches(windows: WindowPlan, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    every = np.sort(np.concatenate([part.windows for part in windows.parts]))
    step = max(1, BATCH_TOKENS // windows.corpus.context)
    for start in range(0, len(every), step):
        some = every[start : start + step]
        ids = torch.from_numpy(windows.document_ids(some)).to(device) if windows.corpus.document_mask else None
        yield torch.from_numpy(windows.read(some)).to(device), ids
