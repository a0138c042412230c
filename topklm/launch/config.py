"""The configuration of a sweep: which runs there are, and where they are trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from topklm.errors import Problem


@dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """What a dry run takes for the speed, as long as no run of the sweep is finished and has measured it."""

    tflops_per_gpu: float | None = None
    """Peak of one device in 10^12 FLOP/s (989.5: H100 SXM and H200 in bf16); null: times are unknown."""
    mfu: float = 0.4
    """The share of this peak that training is assumed to reach."""

    def problems(self) -> Iterator[Problem]:
        if self.tflops_per_gpu is not None and self.tflops_per_gpu <= 0:
            yield Problem("tflops_per_gpu", f"{self.tflops_per_gpu} must be above 0 (or null)")
        if not 0 < self.mfu <= 1:
            yield Problem("mfu", f"{self.mfu} must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class FiguresConfig:
    """How `report` draws the sweep."""

    x: str | None = None
    """The swept key of the horizontal axis; null: the first one."""
    log_x: bool = False
    """Logarithmic horizontal axis, where all values are numbers above 0."""

    def problems(self) -> Iterator[Problem]:
        return iter(())


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """A SLURM array, one task per run, through submitit. What is null is left to the cluster's defaults."""

    cluster: Literal["slurm", "local"] = "slurm"
    """slurm; or local: submitit's own processes on this machine, which try the machinery without a cluster."""
    nodes: int = 1
    """Nodes of each run; torchrun starts gpus_per_run processes on each."""
    time_minutes: int = 1440
    """Time limit of one job; a run that needs longer saves, is queued again and goes on."""
    max_requeues: int = 20
    """How often a run that ran into its time limit is queued again; preemptions are not counted."""
    array_parallelism: int = 256
    """Runs at a time."""
    cpus_per_task: int | None = None
    """Cores per node."""
    mem_gb: int | None = None
    """Memory per node."""
    partition: str | None = None
    """Partition."""
    account: str | None = None
    """Account."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    signal_seconds: int = 120
    """How long before the time limit a run is told to save; longer than a step and a checkpoint take."""
    setup: list[str] = field(default_factory=list)
    """Shell lines that run before: modules, environments."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further parameters of sbatch by name (exclusive: true)."""

    def problems(self) -> Iterator[Problem]:
        for name in ("nodes", "time_minutes", "array_parallelism", "signal_seconds"):
            if getattr(self, name) < 1:
                yield Problem(name, f"{getattr(self, name)} is below 1")
        if self.max_requeues < 0:
            yield Problem("max_requeues", f"{self.max_requeues} is negative")
        if self.signal_seconds >= 60 * self.time_minutes:
            yield Problem("signal_seconds", f"{self.signal_seconds} leaves nothing of {self.time_minutes} minutes")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Runs that differ in some settings: a grid or a list of settings, times seeds, with the dense twins."""

    name: str = "sweep"
    """Name of the sweep, one word."""
    title: str = ""
    """What it asks, for the report; the name if empty."""
    base_config: str = ""
    """YAML of an ordinary training, from which all runs differ. Its path is meant from the working directory."""
    set: dict[str, Any] = field(default_factory=dict)
    """Settings of all runs: lies over base_config as a file lies over its `base`; keys may be dotted."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted key: its values. Every combination is trained."""
    runs: list[dict[str, Any]] = field(default_factory=list)
    """Settings that belong together, a mapping of dotted keys per entry; each is combined with the whole grid."""
    seeds: list[int] = field(default_factory=list)
    """Every run once with each of these; empty: with the seeds of base_config."""
    seed_keys: list[str] = field(default_factory=lambda: ["seed", "model.seed", "data.seed"])
    """What a seed sets: random numbers in training, initial weights, order of the samples."""
    twins: bool = False
    """Train the dense twin of every TopK run too: the same configuration and seed with topk=null, each only once."""
    run_name: str = ""
    """Pattern of a run's name; {key} is the value of a dotted key of its configuration: "k{topk.k}-s{seed}". Empty:
    made from what is swept."""
    twin_name: str = ""
    """Pattern of a twin's name; empty: "dense" and what is swept that a dense model has."""
    dump_dir: str = ""
    """Directory of the sweep; each run gets the one of its name in it."""
    max_parallel: int = 1
    """Runs at a time on this machine."""
    gpus_per_run: int = 0
    """GPUs of each run (per node), by torchrun where it is more than 1; 0: apps.train finds its device by itself."""
    slurm: SlurmConfig | None = None
    """Give the runs to SLURM instead of training them here; null: here."""
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    """Speed that a dry run assumes."""
    figures: FiguresConfig = field(default_factory=FiguresConfig)
    """How `report` draws it."""
    out: str = ""
    """Where `report` writes; dump_dir/report if empty."""
    dry_run: bool = False
    """List the runs with their sizes, times and states, and start nothing (also --dry-run)."""

    def problems(self) -> Iterator[Problem]:
        if not self.base_config:
            yield Problem("base_config", "is missing: the YAML of a training, such as configs/quickstart/topk.yaml")
        if not self.dump_dir:
            yield Problem("dump_dir", f"is missing: the directory of this sweep, such as runs/sweeps/{self.name}")
        for key, values in self.grid.items():
            if not values:
                yield Problem(f"grid.{key}", "has no values; there would be no runs")
        for i, settings in enumerate(self.runs):
            for key in sorted(settings.keys() & self.grid.keys()):
                yield Problem(f"runs[{i}]", f"sets {key}, which the grid sets too")
        if len(set(self.seeds)) < len(self.seeds):
            yield Problem("seeds", f"{self.seeds} has one of them twice")
        if self.seeds and not self.seed_keys:
            yield Problem("seed_keys", "is empty, but there are seeds")
        if self.max_parallel < 1:
            yield Problem("max_parallel", f"{self.max_parallel} is below 1")
        if self.gpus_per_run < 0:
            yield Problem("gpus_per_run", f"{self.gpus_per_run} is negative")
        if self.slurm is not None and self.slurm.nodes > 1 and self.gpus_per_run < 1:
            yield Problem("gpus_per_run", f"is {self.gpus_per_run}; runs on {self.slurm.nodes} nodes need it")
        swept = [*self.grid, *(key for settings in self.runs for key in settings)]
        for key in dict.fromkeys(swept):
            if key in ("name", "dump_dir") or (self.seeds and key in self.seed_keys):
                yield Problem(f"grid.{key}", "is set by the sweep itself")
        if self.figures.x is not None and self.figures.x not in swept:
            yield Problem("figures.x", f"{self.figures.x} is not swept; swept: {', '.join(dict.fromkeys(swept))}")
