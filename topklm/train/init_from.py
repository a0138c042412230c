"""`init_from`: a new run takes weights, model and vocabulary from a model that is trained already."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

from topklm.checkpoint import read_description, resolve, stored_tokenizers
from topklm.data import Tokenizer, open_saved_tokenizer
from topklm.errors import ConfigError, Problem, TopklmError
from topklm.model import ModelConfig
from topklm.sparsity import TopKConfig
from topklm.train.config import TrainConfig

log = logging.getLogger("topklm.train")

# What the weights are for. The rest of the section is how they are trained.
TAKEN = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "ffn_dim_multiplier", "multiple_of",
         "norm_eps", "rope_theta", "rope_scaling", "vocab_size", "weight_tying")  # fmt: skip
# A size that may be left to follow from others: what it comes to.
DERIVED = {"n_heads": "heads", "n_kv_heads": "kv_heads", "head_dim": "head_width", "ffn_dim": "ffn_width"}


def take_model(config: TrainConfig, source: ModelConfig) -> TrainConfig:
    """`config` with the model section of `source`, wherever it leaves a key at its default.

    Raises `ConfigError` with every key that is set to something else than the source has.
    """
    own, default = config.model, ModelConfig()
    problems = []
    for name in TAKEN:
        value, theirs = getattr(own, name), getattr(source, name)
        allowed = [getattr(default, name), theirs, getattr(source, DERIVED.get(name, name))]
        if value not in allowed:
            problems.append(
                Problem(
                    f"model.{name}",
                    f"{value!r}, but the model of init_from has {allowed[-1]!r}; leave the key out (to change it "
                    "nevertheless: checkpoint.init_ckpt_path takes nothing but weights)",
                )
            )
    if problems:
        raise ConfigError(problems)
    longest = source.max_seqlen if own.max_seqlen == default.max_seqlen else own.max_seqlen
    taken = {name: getattr(source, name) for name in TAKEN}
    return dataclasses.replace(config, model=dataclasses.replace(own, **taken, max_seqlen=longest))


def start_from(config: TrainConfig, tokenizer_dir: Path | None) -> TrainConfig:
    """`config` of a run that begins with the weights of `init_from`.

    `tokenizer_dir`: of the prepared data, which must have the source's tokenizer; None: not compared. Raises
    `ConfigError` with everything that does not fit the source.
    """
    try:
        checkpoint = resolve(Path(config.init_from or ""))
        source, topk, _ = read_description(checkpoint)
        tokenizers = stored_tokenizers(checkpoint)
    except TopklmError as error:
        raise ConfigError([Problem("init_from", str(error))]) from error
    problems = []
    if tokenizer_dir is not None:
        problems += list(_tokenizer_problems(open_saved_tokenizer(tokenizer_dir), tokenizers, checkpoint))
    try:
        config = take_model(config, source)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    for line in _remarks(config, source, topk):
        log.warning("%s", line)
    return config


def _tokenizer_problems(own: Tokenizer, theirs: list[Tokenizer], checkpoint: Path) -> Iterator[Problem]:
    """Ids must mean to the data what they mean to the embedding."""
    if not theirs:
        log.warning("%s brings no tokenizer; whether the data were prepared with its own is not known", checkpoint)
    elif not any(_same_pieces(own, other) for other in theirs):
        first = theirs[0]
        yield Problem(
            "data.root_dir",
            f"prepared with another tokenizer ({own.name}, {own.vocab_size} ids, sha256 {own.sha256[:12]}) than that "
            f"of init_from ({first.name}, {first.vocab_size} ids, {first.sha256[:12]}); {_remedy(first, checkpoint)}",
        )


def _remedy(tokenizer: Tokenizer, checkpoint: Path) -> str:
    if tokenizer.file_name is None:
        return f"prepare the data with tokenizer={{name: {tokenizer.name}}}"
    for place in (checkpoint, *list(checkpoint.parents)[:2]):
        for file in (place / tokenizer.file_name, place / "tokenizer" / tokenizer.file_name):
            if file.is_file():
                return f"prepare the data with tokenizer={{name: {tokenizer.name}, path: {file}}}"
    return (
        "write init_from as a directory of Hugging Face (docs/huggingface.md), start from that, and prepare the data "
        "with the tokenizer.json in it"
    )


def _same_pieces(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether each id stands for the same text; an export may hold the same vocabulary in a file of another kind."""
    if a.sha256 == b.sha256:
        return True
    return a.vocab_size == b.vocab_size and all(a.piece(i) == b.piece(i) for i in range(a.vocab_size))


def _remarks(config: TrainConfig, source: ModelConfig, topk: TopKConfig | None) -> Iterator[str]:
    """What is allowed, and likely not meant."""
    if config.data.seq_len > source.max_seqlen:
        yield f"data.seq_len {config.data.seq_len} is more than the {source.max_seqlen} tokens of init_from"
    if config.topk is None:
        if topk is not None:
            yield "init_from is a TopK model; without a section topk it goes on as a dense one"
        return
    anneals = config.topk.resolve(config.steps).anneal_steps != 0
    if topk is not None and anneals:
        yield "init_from is a TopK model, and alpha starts at 1 (dense) again; topk.anneal_ratio=0 goes on with the cut"
    elif topk is None and not anneals:
        yield "the cut is there from the first step; with topk.anneal_ratio above 0 the pretrained model fades into it"
    elif topk is None and config.topk.anneal_form == "relu":
        yield "topk.anneal_form relu is not the pretrained model at alpha = 1 either: negative entries are cut at once"
