"""Many runs as one: sweeps, here or on SLURM. What runs is `python -m apps.train`; this room only starts it."""

from topklm.launch.config import EstimateConfig, FiguresConfig, SlurmConfig, SweepConfig
from topklm.launch.plan import PlannedRun, plan_runs
from topklm.launch.sweep import run_sweep

__all__ = ["EstimateConfig", "FiguresConfig", "PlannedRun", "SlurmConfig", "SweepConfig", "plan_runs", "run_sweep"]
