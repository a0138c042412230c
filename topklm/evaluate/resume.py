"""What an earlier evaluation of the same model with the same settings found, so that it need not be found again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from topklm.data import HeldOut, Windows
from topklm.errors import ConfigError, DataError
from topklm.evaluate.harness import HarnessOutcome, settings_of
from topklm.evaluate.harness_config import HarnessConfig
from topklm.report.evals.read import Evaluation, read_evaluation

log = logging.getLogger("topklm.evaluate")

SAME = ("checkpoint_sha256", "step", "alpha", "tokenizer_sha256", "context", "bos", "dtype")
"""Keys of the provenance in which two evaluations must agree for one to take over what the other found."""


def earlier_evaluation(directory: Path, provenance: dict[str, Any]) -> Evaluation | None:
    """The evaluation in a directory, if it is whole and of the same model in the same setting."""
    try:
        found = read_evaluation(directory)
    except ConfigError:  # there is none
        return None
    except DataError as error:
        log.warning("%s", error)
        return None
    if provenance["checkpoint_sha256"] is None:  # whether it is the same model, nobody can tell
        return None
    return found if all(found.provenance.get(key) == provenance[key] for key in SAME) else None


def earlier_tasks(found: Evaluation | None, config: HarnessConfig, hashes: dict[str, str]) -> HarnessOutcome:
    """The tasks of an earlier evaluation, if it had the same settings; without those whose documents have changed.

    `hashes`: of the tasks that are known now (`LoadedTasks.hashes`).
    """
    if found is None or found.harness is None:
        return HarnessOutcome()
    results = found.harness
    before = results.get("config", {})
    if other := [key for key, value in settings_of(config).items() if before.get(key) != value]:
        names = ", ".join(results.get("results", {}))
        log.warning("the earlier results of %s are replaced: they had another %s", names, ", ".join(other))
        return HarnessOutcome()
    before = results.get("task_hashes", {})
    stale = {task for task, hash_ in hashes.items() if before.get(task, hash_) != hash_}
    groups = results.get("group_subtasks", {})
    stale |= {group for group, members in groups.items() if stale & set(members)}
    kept = {
        key: {name: part for name, part in value.items() if name not in stale}
        for key, value in results.items()
        if isinstance(value, dict) and key not in ("config", "provenance", "files", "failed")
    }
    samples = {task: found.samples(task) or [] for task in before if task not in stale}
    return HarnessOutcome(kept, {task: lines for task, lines in samples.items() if lines})


def is_done(loaded: dict[str, Any], earlier: HarnessOutcome) -> bool:
    """Whether all that a name of `HarnessConfig.tasks` stands for is among the earlier tasks."""
    known = earlier.results.get("results", {})
    groups = [name for name, group in (loaded.get("groups") or {}).items() if group.has_aggregation]
    return all(name in known for name in [*loaded["tasks"], *groups])


def joined(earlier: HarnessOutcome, new: HarnessOutcome) -> HarnessOutcome:
    """Both in one; the new where both have something."""
    results = dict(new.results)
    for key, part in earlier.results.items():
        results[key] = {**part, **new.results.get(key, {})}
    return HarnessOutcome(results, {**earlier.samples, **new.samples}, new.failed)


def has_validation(
    found: Evaluation | None, held_out: HeldOut, windows: Sequence[Windows], provenance: dict[str, Any]
) -> bool:
    """Whether the held-out text was scored in these windows already, by the same model in the same dtype.

    The file of the tasks beside it may be of another time, so the validation's own provenance decides.
    """
    if found is None or found.validation is None:
        return False
    stated = found.validation.get("provenance", {})
    if any(stated.get(key) != provenance[key] for key in SAME if key not in ("context", "bos")):
        log.warning("the earlier validation is replaced: it was of another model or in another dtype")
        return False
    views = found.validation.get("views", {})
    same_text = found.validation.get("held_out", {}).get("fingerprint") == held_out.fingerprint
    return same_text and all(views.get(w.view, {}).get("windows") == asdict(w) for w in windows)
