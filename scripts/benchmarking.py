"""What the benchmarks share: variants in turns, ratios within a round, memory in a process of its own, JSON.

A shared machine is slow for seconds at a time. So every round runs all variants, in a new order, and what counts is the
median over the rounds of the ratio within a round: what slows the machine down slows neighbours alike.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch


class Times:
    """Seconds by variant and round, on the clock that was asked for."""

    def __init__(self, seconds: dict[str, list[float]]):
        self.seconds = seconds

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratios(self, name: str, to: str) -> list[float]:
        """Time of `name` over time of `to`, round by round."""
        return [a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True)]

    def ratio(self, name: str, to: str) -> float:
        """Median of the ratios within a round."""
        return statistics.median(self.ratios(name, to))

    def spread(self, name: str, to: str) -> tuple[float, float]:
        """Quartiles of these ratios."""
        ratios = self.ratios(name, to)
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return low, high


def alternate(
    runs: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: int = 1, cpu_time: bool = False
) -> Times:
    """Run every variant once a round, in an order drawn anew. `cpu_time`: of the process, all threads together."""
    clock = time.process_time if cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order, draw = list(runs), random.Random(0)
    for round_ in range(-warm_up, rounds):
        draw.shuffle(order)
        for name in order:
            synchronize()
            began = clock()
            runs[name]()
            synchronize()
            if round_ >= 0:
                seconds[name].append(clock() - began)
    return Times(seconds)


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """b of y = a x^b, by least squares on the logarithms."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def memory_of(*arguments: str) -> float:
    """Bytes that this script prints when it is started again with `arguments`: a process's highest memory never falls,
    so each variant gets a process of its own."""
    command = [sys.executable, *sys.argv, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def peak_memory(run: Callable[[], object]) -> float:
    """Bytes that `run` needs at most, beyond what there was before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    """Bytes of memory of this process, of Linux. (`ru_maxrss` would begin with the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith(key)).split()[1])


def machine() -> dict[str, Any]:
    """What a figure has to be read with."""
    cuda = torch.cuda.is_available()
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_json(path: Path, settings: Mapping[str, Any], results: Any) -> None:
    """{"machine", "settings", "results"}."""
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    record = {"machine": machine(), "settings": shown, "results": results}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")


def headline() -> str:
    return ", ".join(f"{key} {value}" for key, value in machine().items())


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
