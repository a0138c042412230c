"""What can be told of all runs of a sweep before the first one starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from topklm.data import TrainData, open_data
from topklm.errors import ConfigError, Problem, TopklmError
from topklm.launch.plan import PlannedRun
from topklm.launch.state import contradictions
from topklm.train.settle import settle


def check_runs(runs: Sequence[PlannedRun], ranks: int) -> None:
    """Raise `ConfigError` with everything that is wrong with any run: its data, what it would be on `ranks` processes,
    and checkpoints of another configuration in its directory. The configurations themselves are checked by `plan`."""
    problems = contradictions(runs, ranks)
    contradicted = {problem.key for problem in problems}
    opened: dict[str, TrainData | TopklmError] = {}
    for run in runs:
        if run.name in contradicted:
            continue  # settle would tell the same again
        data = _open(run, opened)
        if isinstance(data, TopklmError):
            problems.append(Problem("data", str(data)))
            continue
        try:
            settle(run.config, vocab_size=data.vocab_size, world_size=ranks, tokenizer_dir=data.tokenizer_dir)
        except ConfigError as error:
            problems += [problem.under(run.name) for problem in error.problems]
        except TopklmError as error:
            problems.append(Problem(run.name, str(error)))
    if problems:
        raise ConfigError(dict.fromkeys(problems))


def _open(run: PlannedRun, opened: dict[str, Any]) -> TrainData | TopklmError:
    """The data of a run, opened once for all runs that have the same."""
    data = run.config.data
    key = repr((data.root_dir, sorted(data.sources), data.seq_len, data.add_bos, data.add_eos, data.tokenizer))
    if key not in opened:
        try:
            opened[key] = open_data(data)
        except TopklmError as error:
            opened[key] = error
    return opened[key]
