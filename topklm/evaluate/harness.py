"""lm-evaluation-harness on a model of ours, task by task, in all ranks of a job."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from topklm.data import Tokenizer
from topklm.errors import ConfigError, NonFiniteError
from topklm.evaluate.harness_config import HarnessConfig
from topklm.evaluate.harness_figures import add_token_perplexity, fill_errors, near_chance
from topklm.evaluate.harness_marks import Marks
from topklm.evaluate.harness_progress import shown
from topklm.evaluate.harness_ranks import Crew, Work
from topklm.evaluate.harness_scoring import Score, Scorer, Span
from topklm.evaluate.tasks import EXTRA, LoadedTasks, chance_level, load_tasks
from topklm.generate import SamplingConfig, generate
from topklm.model import Transformer
from topklm.optional import require
from topklm.sparsity import activation_tensors, get_alpha
from topklm.sparsity.patch import sparse_states

log = logging.getLogger("topklm.evaluate")


@dataclass(frozen=True)
class HarnessOutcome:
    """What the harness found. On ranks other than 0 all three are empty."""

    results: dict[str, Any] = field(default_factory=dict)
    """As `lm_eval.simple_evaluate` returns it, without `samples` and the description of the machine; and of ours, by
    task: `chance` (accuracy of guessing, or None), `near_chance` (metrics within two standard errors of it), `requests`
    (their number, scored tokens, prompts that were cut) and `task_hashes`."""
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The harness's log of each task, document by document; empty with log_samples=false."""
    failed: dict[str, str] = field(default_factory=dict)
    """Tasks that did not run, with the reason and what to do."""


def run_harness(
    model: Transformer,
    tokenizer: Tokenizer | None,
    config: HarnessConfig,
    *,
    context: int,
    marks: Marks,
    tasks_dir: str | None = None,
    tasks: LoadedTasks | None = None,
    rank: int = 0,
    world_size: int = 1,
    done: Callable[[HarnessOutcome], None] | None = None,
) -> HarnessOutcome:
    """Run `config.tasks` on a model at its present alpha. Every rank calls it, with a whole model each.

    `context`: tokens that the model sees at most. `marks`: the BOS policy (`marks_for`). `tasks`: what `load_tasks`
    gave, to load them once for several models; rank 0 alone needs them. `done` is called on rank 0 with the outcome so
    far, after each task. Neither the model's mode nor any random state is changed. Raises `ConfigError` where nothing
    can be run at all.
    """
    if tokenizer is None:
        raise ConfigError("the checkpoint has no tokenizer, and the harness's tasks are texts; put its tokenizer/ back")
    device = model.head_weight.device
    work = work_of(model, tokenizer, Scorer(model, device=device, batch_tokens=config.batch_tokens))
    crew = Crew(work, rank, world_size)
    was_training = model.training
    model.eval()
    try:
        with _random_state_kept(device):
            if rank != 0:
                crew.serve()
                return HarnessOutcome()
            try:
                loaded = tasks or load_tasks(config, tasks_dir)
                return _Run(model, tokenizer, crew, config, context, marks, loaded).all(done)
            finally:
                crew.dismiss()
    finally:
        model.train(was_training)


def settings_of(config: HarnessConfig) -> dict[str, Any]:
    """What decides a task's figures beside the task and the model, in the harness's names of its results."""
    return {
        "limit": config.limit,
        "num_fewshot": config.num_fewshot,
        "bootstrap_iters": config.bootstrap_iters,
        "log_samples": config.log_samples,
        "gen_kwargs": config.gen_kwargs,
        "random_seed": config.random_seed,
        "numpy_seed": config.numpy_random_seed,
        "torch_seed": config.torch_random_seed,
        "fewshot_seed": config.fewshot_random_seed,
    }


def work_of(model: Transformer, tokenizer: Tokenizer, scorer: Scorer) -> dict[str, Work]:
    """What every rank can do: see `HarnessModel`."""

    def score(groups: Sequence[list[Span]], _: None, advance: Callable[[int], None] | None) -> list[list[Score]]:
        scores = iter(scorer.score([span for group in groups for span in group], advance))
        return [[next(scores) for _ in group] for group in groups]

    def write(
        prompts: Sequence[tuple[int, list[int]]],
        settings: tuple[SamplingConfig, int],
        advance: Callable[[int], None] | None,
    ) -> list[str]:
        config, context = settings
        numbers, ids = [number for number, _ in prompts], [ids for _, ids in prompts]
        completions = generate(model, tokenizer, ids, config, context=context, numbers=numbers)
        if advance is not None:
            advance(len(prompts))
        return [samples[0].text for samples in completions]

    return {"score": score, "generate": write}


class _Run:
    """On rank 0: one task after the other, and what they have in common."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        crew: Crew,
        config: HarnessConfig,
        context: int,
        marks: Marks,
        tasks: LoadedTasks,
    ):
        self.config, self.tasks = config, tasks
        self.evaluate = require("lm_eval.evaluator", EXTRA).evaluate
        lm = require("topklm.evaluate.harness_model", EXTRA).HarnessModel
        self.lm = lm(tokenizer, crew, window=context, marks=marks, progress=shown, seed=config.torch_random_seed)
        self.answers = self.lm
        if config.use_cache is not None:
            key = _fingerprint(model, tokenizer, context, marks)
            caching = require("lm_eval.api.model", EXTRA).CachingLM
            self.answers = caching(self.lm, f"{config.use_cache}_{key[:16]}.db")
        self.results: dict[str, Any] = {
            "config": {
                "model": "topklm",
                "model_args": {"max_length": context, "marks": marks.words},
                "device": str(model.head_weight.device),
                "use_cache": config.use_cache,
                **settings_of(config),
            },
            "lm_eval_version": require("lm_eval", EXTRA).__version__,
            "date": time.time(),
            "max_length": context,
        }
        self.samples: dict[str, list[dict[str, Any]]] = {}

    def all(self, done: Callable[[HarnessOutcome], None] | None) -> HarnessOutcome:
        failed = dict(self.tasks.failed)
        outcome = HarnessOutcome(self.results, self.samples, failed)
        for name, loaded in self.tasks.found.items():
            try:
                self.one(loaded)
            except (ConfigError, ImportError) as error:  # a figure may need a package that nothing else does
                failed[name] = str(error)
                log.warning("task %s cannot run: %s", name, error)
            except NonFiniteError:  # of the model: every task would end like that
                raise
            except Exception as error:  # a document that the harness cannot read, or a fault of the task's own
                failed[name] = f"{type(error).__name__}: {error}"
                log.exception("task %s did not run to its end", name)
            else:
                if done is not None:
                    done(outcome)
        return outcome

    def one(self, loaded: dict[str, Any]) -> None:
        """What one name of `config.tasks` stands for: a task, or a group with its tasks."""
        config = self.config
        for task in loaded["tasks"].values():
            self._settle(task)
        random.seed(config.random_seed)
        np.random.seed(config.numpy_random_seed)
        torch.manual_seed(config.torch_random_seed)
        with _single_process(), contextlib.redirect_stdout(sys.stderr):  # the harness prints what it does
            found = self.evaluate(
                self.answers, loaded, limit=config.limit, cache_requests=config.cache_requests,
                rewrite_requests_cache=config.rewrite_requests_cache, bootstrap_iters=config.bootstrap_iters,
                log_samples=True,
            )  # fmt: skip
        samples = found.pop("samples")
        for name, task in loaded["tasks"].items():
            self._complete(found, name, task, samples[name])
        for key, part in found.items():
            self.results.setdefault(key, {}).update(part)
        if config.log_samples:
            self.samples |= samples

    def _settle(self, task: Any) -> None:
        """Settings that replace the task's own, by the rules of `lm_eval.simple_evaluate`."""
        config = self.config
        if config.gen_kwargs and task.get_config("output_type") == "generate_until":
            given = config.gen_kwargs
            if isinstance(given, str):
                given = require("lm_eval.utils", EXTRA).simple_parse_args_string(given)
            task.set_config(key="generation_kwargs", value=given, update=True)
        own = task.get_config("num_fewshot")
        if config.num_fewshot is not None and own != 0:  # a task that says 0 itself means it
            task.set_config(key="num_fewshot", value=config.num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=config.fewshot_random_seed)

    def _complete(self, found: dict[str, Any], name: str, task: Any, samples: list[dict[str, Any]]) -> None:
        """What the harness leaves out about one task."""
        metrics = found["results"][name]
        instances = task.instances
        scored = [self.lm.spans(one) for one in instances if one.request_type != "generate_until"]
        tokens = [sum(span.n_scored for span in spans) for spans, _ in scored]
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            by_document = dict(zip((one.doc_id for one in instances), tokens, strict=True))
            add_token_perplexity(metrics, samples, by_document)
            found["higher_is_better"][name] |= {"token_perplexity": False}
        if self.config.bootstrap_iters:
            fill_errors(metrics, samples)
        chance = chance_level(task, [sample["doc"] for sample in samples])
        n_cut = sum(n > 0 for _, n in scored)
        if n_cut:
            log.warning("%s: %d of %d prompts were cut on the left to fit the context", name, n_cut, len(instances))
        found.setdefault("chance", {})[name] = chance
        found.setdefault("near_chance", {})[name] = near_chance(metrics, chance)
        found.setdefault("requests", {})[name] = {"n": len(instances), "scored_tokens": sum(tokens), "cut": n_cut}
        found.setdefault("task_hashes", {})[name] = self.tasks.hashes[name]


@contextlib.contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def _single_process() -> Iterator[None]:
    """Keep the harness from forking for its bootstrap: this process has threads, a GPU and process groups."""
    name = "DISABLE_MULTIPROC"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _fingerprint(model: Transformer, tokenizer: Tokenizer, context: int, marks: Marks) -> str:
    """sha256 (hex) over all that decides an answer: weights, alpha, dtype, tokenizer, context, BOS policy.

    The harness's own cache knows a request by its text alone, and would answer for another model.
    """
    topk = [state.cfg for state in sparse_states(model)]
    digest = hashlib.sha256(repr((model.config, topk, get_alpha(model), tokenizer.sha256, context, marks)).encode())
    for name, weight in {**model.state_dict(), **activation_tensors(model)}.items():
        digest.update(f"{name} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
