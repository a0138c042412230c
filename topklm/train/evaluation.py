"""Evaluation during training: held-out shards and, if asked for, lm-evaluation-harness, in the run's own ranks.

It leaves no trace in training: the model's mode, the sharding of its weights and the random state (which `run_harness`
keeps) are what they were.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from topklm.config import to_dict
from topklm.data import TrainData
from topklm.errors import TopklmError
from topklm.evaluate import (
    HarnessOutcome,
    Marks,
    Validation,
    evals_directory,
    evaluation_provenance,
    marks_for,
    run_harness,
    validate,
    windows_of,
    write_results,
)
from topklm.sparsity import get_alpha
from topklm.train.config import TrainConfig
from topklm.train.metrics import append_line
from topklm.train.parallel import DTYPES, World

log = logging.getLogger("topklm.train")

VALIDATION_METRICS = "metrics.validation.jsonl"
EVAL_METRICS = "metrics.eval.jsonl"


def evaluate_step(model: nn.Module, config: TrainConfig, data: TrainData, world: World, step: int) -> dict[str, float]:
    """Everything that `config.eval` asks for, at the model's present weights and alpha. Every rank calls it.

    Rank 0 writes `evals/{step:010d}/`, metrics.validation.jsonl and metrics.eval.jsonl. Returns flat figures for
    metrics.jsonl and the other sinks: `val/...` and `topk/...`, on rank 0 also `eval/<task>/<metric>`.
    """
    if config.eval is None:
        return {}
    settings = config.eval.validation
    try:
        validation = validate(
            model,
            data.held_out,
            windows_of(settings, config.data.seq_len),
            batch_size=settings.batch_size or config.data.batch_size,
            document_mask=config.model.document_mask,
            rank=world.rank,
            world_size=world.size,
            device=world.device,
        )
        outcome = _harness(model, config, data, world)
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()  # the root stays gathered after a forward pass without a backward
    if not world.is_main:
        return validation.figures
    _write(model, config, data, world, step, validation, outcome)
    return validation.figures | _flat(outcome)


def _harness(model: nn.Module, config: TrainConfig, data: TrainData, world: World) -> HarnessOutcome | None:
    assert config.eval is not None
    harness = config.eval.harness
    if harness is None or not harness.tasks:
        return None
    tokenizer = data.held_out.tokenizer
    try:
        # Requests are of any length and number: compiled for none of them, and no rank waits for another's.
        with gathered(model), torch.compiler.set_stance("force_eager"):
            return run_harness(
                model, tokenizer, harness, context=config.eval.context, marks=_marks(config, data),
                tasks_dir=config.eval.tasks_dir, rank=world.rank, world_size=world.size,
            )  # fmt: skip
    except TopklmError as error:
        # The tasks were there when training began; what has become of them is no reason to end it.
        log.error("the tasks of eval.harness were not evaluated: %s", error)
        return None


def _marks(config: TrainConfig, data: TrainData) -> Marks:
    manifests = data.manifests.values()
    trained = {key: any(getattr(manifest, key) for manifest in manifests) for key in ("add_bos", "add_eos")}
    return marks_for(data.held_out.tokenizer, {"data": trained})


def _write(
    model: nn.Module,
    config: TrainConfig,
    data: TrainData,
    world: World,
    step: int,
    validation: Validation,
    outcome: HarnessOutcome | None,
) -> None:
    assert config.eval is not None
    harness = config.eval.harness
    provenance = evaluation_provenance(
        to_dict(config),
        step=step,
        alpha=get_alpha(model),
        tokenizer_sha256=data.held_out.tokenizer_sha256,
        context=config.eval.context,
        bos="" if outcome is None else _marks(config, data).words,
        seed=config.seed if harness is None else harness.torch_random_seed,
        device=world.device,
        dtype=DTYPES[config.distributed.model_dtype],
        ranks=world.size,
        data_fingerprint=data.fingerprint,
    )
    dump_dir = Path(config.dump_dir)
    append_line(dump_dir / VALIDATION_METRICS, {"global_step": step, **validation.figures})
    directory = evals_directory(dump_dir, step)
    write_results(directory, provenance=provenance, validation=validation)
    if outcome is not None:
        append_line(dump_dir / EVAL_METRICS, {"global_step": step, **outcome.results["results"]})
        write_results(
            directory, provenance=provenance, harness=outcome.results, samples=outcome.samples, failed=outcome.failed
        )


def _flat(outcome: HarnessOutcome | None) -> dict[str, float]:
    """`eval/<task>/<metric>` of every number that the harness found."""
    tasks = {} if outcome is None else outcome.results["results"]
    return {
        f"eval/{task}/{metric.removesuffix(',none')}": float(value)
        for task, figures in tasks.items()
        for metric, value in figures.items()
        if "," in metric and isinstance(value, int | float)
    }


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every rank holds all weights of a model that FSDP2 has sharded, in its compute dtype: a forward pass
    needs no other rank. Costs the memory of one copy of the weights. Without FSDP2 it does nothing."""
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)  # else it would not, in the middle of a forward pass
            module.reshard()
            # FSDP2's own rule: all but the root are sharded again after their forward pass.
            module.set_reshard_after_forward(module is not model, recurse=False)
