"""Evaluating checkpoints one after the other, all ranks together: results are kept task by task, and found once."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from topklm.checkpoint import load_model
from topklm.checkpoint.load import LoadedConfig
from topklm.data import open_held_out
from topklm.errors import CheckpointError, DataError
from topklm.evaluate.app_config import EvalAppConfig
from topklm.evaluate.config import ValidationConfig
from topklm.evaluate.harness import HarnessOutcome, run_harness
from topklm.evaluate.harness_marks import marks_for
from topklm.evaluate.harness_progress import shown
from topklm.evaluate.results import evals_directory, evaluation_provenance, write_results
from topklm.evaluate.resume import earlier_evaluation, earlier_tasks, has_validation, is_done, joined
from topklm.evaluate.tasks import LoadedTasks, load_tasks
from topklm.evaluate.validation import n_validation_batches, validate_checkpoint, windows_of
from topklm.ranks import Ranks
from topklm.report.evals.read import Evaluation, read_evaluation

log = logging.getLogger("topklm.evaluate")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}
"""Tokens in a forward pass of the validation, where it names no batch size."""


@dataclass(frozen=True)
class Evaluated:
    """One checkpoint, evaluated. On ranks other than 0 only its name is set."""

    checkpoint: str
    """As it was named."""
    directory: Path | None = None
    """Where the results are."""
    harness: dict[str, Any] | None = None
    """`results.json`, with earlier tasks of the same model and settings."""
    figures: dict[str, float] = field(default_factory=dict)
    """The validation's."""
    failed: dict[str, str] = field(default_factory=dict)
    """Tasks (and "validation") that did not run: why, and what to do."""


def evaluate_checkpoints(config: EvalAppConfig, ranks: Ranks) -> list[Evaluated]:
    """Evaluate all checkpoints of a configuration; every rank calls it.

    Tasks are loaded first, then one model after the other. Results are written after every task, and what a directory
    holds of the same model and settings is not found again. Raises `ConfigError`, `DataError`, `CheckpointError`.
    """
    absent = [path for path in config.checkpoints if not Path(path).exists()]
    if absent:
        raise CheckpointError(f"there is no {', no '.join(absent)}: give runs, checkpoint directories or files")
    harness = config.harness
    tasks = ranks.only_first(lambda: None if harness is None else load_tasks(harness, config.tasks_dir))
    return [_Evaluation(config, ranks, path, tasks).run() for path in config.checkpoints]


class _Evaluation:
    """Of one checkpoint."""

    def __init__(self, config: EvalAppConfig, ranks: Ranks, path: str, tasks: LoadedTasks | None):
        self.config, self.ranks, self.path, self.tasks = config, ranks, path, tasks
        dtype = DTYPES[config.dtype]
        self.model, tokenizer, self.loaded = load_model(path, ranks.device, dtype, config.alpha)
        if tokenizer is None:
            raise CheckpointError(f"{path} has no tokenizer, and text is what is evaluated; put its tokenizer/ back")
        self.tokenizer = tokenizer
        self.marks = marks_for(tokenizer, self.loaded.run, config.bos, self.loaded.path)
        self.directory = _directory(config, path, self.loaded)
        self.provenance = evaluation_provenance(
            self.loaded.run,
            step=self.loaded.step,
            alpha=self.loaded.alpha,
            tokenizer_sha256=tokenizer.sha256,
            context=config.context,
            bos=self.marks.words,
            seed=config.harness.random_seed if config.harness else 0,
            device=ranks.device,
            dtype=dtype,
            ranks=ranks.size,
            checkpoint=self.loaded.path,
            checkpoint_sha256=self.loaded.sha256,
        )

    def run(self) -> Evaluated:
        log.info(
            "%s: alpha %s, context %d, %s", self.loaded.path, self.loaded.alpha, self.config.context, self.marks.words
        )
        found = None
        self._tell_length()
        if self.ranks.is_first:
            found = earlier_evaluation(self.directory, self.provenance)
        failed = {}
        if self.config.validation is not None:
            try:
                self._validate(None if self.config.overwrite else found, self.config.validation)
            except DataError as error:  # the same on every rank, before any of them computes
                failed["validation"] = str(error)
                log.warning("no validation: %s", error)
        failed |= self._harness(found)
        if not self.ranks.is_first:
            return Evaluated(self.path)
        if not self.directory.exists():
            return Evaluated(self.path, failed=failed)
        now = read_evaluation(self.directory)
        return Evaluated(self.path, self.directory, now.harness, now.figures, failed)

    def _validate(self, found: Evaluation | None, settings: ValidationConfig) -> None:
        ranks = self.ranks
        windows = windows_of(settings, self.config.context)
        root_dir, sources = self._held_out_place()
        held_out = open_held_out(root_dir, sources)
        if ranks.first(lambda: has_validation(found, held_out, windows, self.provenance)):
            log.info("the validation is there already; overwrite=true repeats it")
            return
        longest = max(each.context for each in windows)
        batch_size = settings.batch_size or max(1, BATCH_TOKENS.get(ranks.device.type, 2048) // longest)
        n = n_validation_batches(self.model, held_out, windows, batch_size=batch_size, world_size=ranks.size)
        with shown("held-out text", n) if ranks.is_first else nullcontext(lambda _: None) as advance:
            validation = validate_checkpoint(
                self.model,
                self.tokenizer,
                root_dir,
                sources,
                settings=settings,
                context=self.config.context,
                batch_size=batch_size,
                device=ranks.device,
                document_mask=self.loaded.model.document_mask,
                rank=ranks.rank,
                world_size=ranks.size,
                on_batch=lambda: advance(1),
            )
        if ranks.is_first:
            write_results(self.directory, provenance=self.provenance, validation=validation)

    def _tell_length(self) -> None:
        """Beyond what a model was trained on, its figures say how its positions extrapolate."""
        trained = (self.loaded.run.get("data") or {}).get("seq_len") or self.loaded.model.max_seqlen
        validation = self.config.validation
        asked = [self.config.context, *(validation.contexts or [] if validation is not None else [])]
        if self.ranks.is_first and max(asked) > trained:
            log.warning(
                "context %d is more than the %d tokens that %s was trained on; figures there are about that as well",
                max(asked), trained, self.path,
            )  # fmt: skip

    def _held_out_place(self) -> tuple[Path, list[str] | None]:
        """(directory, sources) of the held-out text: as configured, else those of the run."""
        config, trained = self.config, self.loaded.run.get("data") or {}
        if config.data_dir is not None:
            return Path(config.data_dir), config.sources or None
        if not trained.get("root_dir"):
            raise DataError(f"{self.path} does not say what it was trained on; give prepared data: data_dir=DIR")
        return Path(trained["root_dir"]), config.sources or list(trained.get("sources") or {}) or None

    def _harness(self, found: Evaluation | None) -> dict[str, str]:
        """Run the tasks that are not there yet. On rank 0: those that could not run, with the reason."""
        config, ranks, tasks = self.config.harness, self.ranks, self.tasks
        if config is None:
            return {}
        earlier = HarnessOutcome()
        if tasks is not None:
            earlier = earlier_tasks(found, config, tasks.hashes)
            known = {} if self.config.overwrite else tasks.found
            done = [name for name, loaded in known.items() if is_done(loaded, earlier)]
            if done:
                log.info("there already, repeated with overwrite=true: %s", ", ".join(done))
            tasks = tasks.only(name for name in tasks.found if name not in done)
        if not ranks.first(lambda: bool(tasks and tasks.found)):
            return {} if tasks is None else tasks.failed
        outcome = run_harness(
            self.model,
            self.tokenizer,
            config,
            context=self.config.context,
            marks=self.marks,
            tasks=tasks,
            rank=ranks.rank,
            world_size=ranks.size,
            done=lambda outcome: self._write(joined(earlier, outcome)),
        )
        return outcome.failed

    def _write(self, outcome: HarnessOutcome) -> None:
        write_results(
            self.directory,
            provenance=self.provenance,
            harness=outcome.results,
            samples=outcome.samples,
            failed=outcome.failed,
        )


def _directory(config: EvalAppConfig, named: str, loaded: LoadedConfig) -> Path:
    """Where the results go. The step, and what a reader must know to compare: settings that are not the usual ones."""
    path = loaded.path
    of_run = path.parent.name == "checkpoints"
    run = path.parent.parent if of_run else (path if path.is_dir() else path.parent)
    if config.results_dir:
        run = Path(config.results_dir)
        if len(config.checkpoints) > 1:  # told apart by what their paths do not share
            every = [os.path.abspath(one) for one in config.checkpoints]
            run /= os.path.relpath(os.path.abspath(named), os.path.commonpath(every)).replace(os.sep, "_")
    directory = evals_directory(run, loaded.step or 0)
    harness = config.harness
    unusual = {
        "alpha": config.alpha,
        "context": config.context if config.context != 256 else None,
        "bos": config.bos,
        "dtype": config.dtype if config.dtype != "fp32" else None,
        "limit": harness.limit if harness else None,
        "shots": harness.num_fewshot if harness else None,
    }
    suffix = "".join(f"-{name}{str(value).lower()}" for name, value in unusual.items() if value is not None)
    return directory.with_name(directory.name + suffix)
