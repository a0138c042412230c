"""Prompts to token ids, with everything that is wrong with them told before anything is generated."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from topklm.data import Tokenizer
from topklm.errors import ConfigError, DataError, Problem
from topklm.generate.config import SamplingConfig


def encode_prompts(
    prompts: Sequence[str] | Sequence[list[int]],
    tokenizer: Tokenizer | None,
    config: SamplingConfig,
    vocab_size: int,
    context: int,
    bos: bool,
    batch_size: int,
) -> list[list[int]]:
    """Ids of every prompt. Raises `ConfigError` with all problems of the prompts and of the settings."""
    problems = list(config.problems())
    if batch_size < 1:
        problems.append(Problem("batch_size", f"{batch_size} is below 1"))
    if context < 2:
        problems.append(Problem("context", f"{context} has no room for a prompt and a token"))
    if isinstance(prompts, str) or any(isinstance(prompt, int) for prompt in prompts):
        problems.append(Problem("prompts", "is one prompt; give a list of prompts"))
        prompts = []
    texts = any(isinstance(prompt, str) for prompt in prompts)
    if tokenizer is None and (texts or config.stop):
        problems.append(Problem("tokenizer", "there is none; texts as prompts and stop strings need one"))
    elif tokenizer is not None and texts and bos and tokenizer.bos_id is None:
        problems.append(Problem("bos", f"the {tokenizer.name} tokenizer has no BOS token; set bos=false"))
    if problems:
        raise ConfigError(problems)
    encoded = []
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            assert tokenizer is not None
            encoded.append(tokenizer.encode(prompt, bos=bos))
        else:
            encoded.append([int(token) for token in cast(Sequence[int], prompt)])  # of a list, an array or a tensor
        problems += [p.under(f"prompts[{i}]") for p in _problems(encoded[-1], vocab_size, context)]
    if problems:
        raise ConfigError(problems)
    return encoded


def _problems(ids: list[int], vocab_size: int, context: int) -> Iterator[Problem]:
    if not ids:
        yield Problem("", "is empty; the model needs a token to begin with, such as BOS (bos=true)")
    if len(ids) >= context:
        yield Problem("", f"has {len(ids):,} tokens, which leave no room in the context of {context:,}")
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        yield Problem("", f"has token ids outside the model's 0 ... {vocab_size - 1:,}")


def read_prompts(path: str) -> list[str]:
    """Prompts of a file: a line each, or JSON Lines (`.jsonl`) of texts or objects with "prompt" or "text"; "-" reads
    lines from standard input. Blank lines are left out. Raises `DataError`.
    """
    try:
        content = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"prompts_file: {path} cannot be read as prompts ({why}); correct the path, or the file"
        ) from error
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"prompts_file: {path} holds no prompt; write one a line")
    if path.endswith(".jsonl"):
        return [_from_json(line, f"{path}, line {number}") for number, line in lines]
    return [line.removesuffix("\r") for _, line in lines]


def _from_json(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON: {error}") from error
    if isinstance(value, dict):
        value = value.get("prompt", value.get("text"))
    if not isinstance(value, str):
        raise DataError(f'{where} is neither a text nor an object with a text "prompt" or "text"')
    return value
