"""From the configuration as given to the one that the run has: filled from the data and the run so far."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from topklm.checkpoint import list_checkpoints, resolve, why_not_continued
from topklm.config import build, to_dict
from topklm.config.build import section_problems
from topklm.errors import ConfigError, Problem
from topklm.model import ModelConfig
from topklm.train.config import TrainConfig
from topklm.train.init_from import start_from, take_model

log = logging.getLogger("topklm.train")

# What decides weights, batches or the method cannot change within a run; speed, schedule and logging can.
FIXED = (
    "seed", "model", "topk", "data.sources", "data.weights_of", "data.seq_len", "data.seed", "data.global_batch_size",
)  # fmt: skip
FREE = ("model.loss_chunk", "model.max_seqlen")


def settle(config: TrainConfig, *, vocab_size: int, world_size: int, tokenizer_dir: Path | None = None) -> TrainConfig:
    """The configuration with nothing left open.

    From the data: vocabulary and longest sequence. From the checkpoint that the run goes on from: the global batch
    size and the annealing steps, so that another number of ranks or a longer run changes neither. From `init_from`:
    the model, if its tokenizer is that of the data (`tokenizer_dir`). Raises `ConfigError` with everything that
    contradicts the data, the world, the source or the run.
    """
    problems: list[Problem] = []
    stored = read_stored(config)
    if config.init_from is not None:
        try:
            # A resumed run does not need its source any more.
            config = take_model(config, stored.model) if stored else start_from(config, tokenizer_dir)
            problems += section_problems(config.model, "model")
            if config.topk is not None:
                topk_problems = config.topk.problems_for(config.model.dim, config.model.n_layers)
                problems += [problem.under("topk") for problem in topk_problems]
        except ConfigError as error:
            problems += error.problems
            if stored is not None:  # what is told already is not a change as well
                config = dataclasses.replace(config, model=stored.model)
    problems += _data_problems(config, vocab_size)
    if stored is not None:
        config = _fill(config, stored)
    batch = config.data.global_batch_size or config.data.batch_size * config.grad_acc_steps * world_size
    model = dataclasses.replace(
        config.model,
        vocab_size=vocab_size if config.model.vocab_size == -1 else config.model.vocab_size,
        max_seqlen=max(config.model.max_seqlen, config.data.seq_len),
    )
    config = dataclasses.replace(
        config,
        model=model,
        data=dataclasses.replace(config.data, global_batch_size=batch),
        topk=config.topk and config.topk.resolve(config.steps),
    )
    if stored is not None:
        problems += _changes(to_dict(stored), to_dict(config))
    try:
        config.distributed.mesh_shape(world_size)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return config


def read_stored(config: TrainConfig) -> TrainConfig | None:
    """The configuration of the checkpoint that training goes on from; None for a run that begins anew.

    Raises `ConfigError` if that is no checkpoint of this project's training.
    """
    key = "dump_dir"
    places = list_checkpoints(config.checkpoint_dir)[::-1]
    if not places and config.checkpoint.continue_training_from_init and config.checkpoint.init_ckpt_path:
        key = "checkpoint.continue_training_from_init"
        places = [resolve(Path(config.checkpoint.init_ckpt_path))]
        if not places[0].is_dir():
            raise ConfigError(
                "checkpoint.continue_training_from_init needs a checkpoint directory, with optimizer state; "
                f"{places[0]} is a file"
            )
    for place in places:
        if (reason := why_not_continued(place)) is not None:
            raise ConfigError([Problem(key, reason)])
        try:
            return build(TrainConfig, json.loads((place / "params.json").read_text()))
        except (OSError, json.JSONDecodeError) as error:
            log.warning("%s: params.json cannot be read (%s)", place, error)
        except ConfigError as error:
            raise ConfigError(
                f"{place} was not written by this version of this project: {error}\nGo on with the version that wrote "
                "it, or start a new run from its weights with checkpoint.init_ckpt_path"
            ) from error
    return None


def _data_problems(config: TrainConfig, vocab_size: int) -> Iterator[Problem]:
    model: ModelConfig = config.model
    if config.init_from is not None:
        if -1 < model.vocab_size < vocab_size:  # embeddings may be padded to a rounder number
            yield Problem(
                "init_from",
                f"has {model.vocab_size} embeddings, too few for the {vocab_size} ids of the data's tokenizer; prepare "
                "the data with the tokenizer of that model",
            )
    elif model.vocab_size not in (-1, vocab_size):
        yield Problem(
            "model.vocab_size",
            f"{model.vocab_size} is not the {vocab_size} of the data's tokenizer; leave it at -1 to take that",
        )


def _fill(config: TrainConfig, stored: TrainConfig) -> TrainConfig:
    if config.data.global_batch_size is None:
        data = dataclasses.replace(config.data, global_batch_size=stored.data.global_batch_size)
        config = dataclasses.replace(config, data=data)
    if config.topk is not None and stored.topk is not None and config.topk.anneal_steps is None:
        topk = dataclasses.replace(config.topk, anneal_steps=stored.topk.anneal_steps)
        config = dataclasses.replace(config, topk=topk)
    return config


def _changes(stored: dict[str, Any], now: dict[str, Any]) -> Iterator[Problem]:
    before, after = _leaves(stored), _leaves(now)
    for key in sorted(before.keys() | after.keys()):
        fixed = any(key == f or key.startswith(f + ".") for f in FIXED) and key not in FREE
        if fixed and before.get(key) != after.get(key):
            yield Problem(
                key,
                f"{after.get(key)!r}, but this run was started with {before.get(key)!r}; "
                "take that, or another dump_dir",
            )


def _leaves(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{path}{key}.")
        else:
            leaves[path + key] = value
    return leaves
