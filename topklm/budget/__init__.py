"""Plan before you run: memory, time and disk of a training run, as closed forms of its configuration.

Nothing here needs data or a GPU. `tests/unit/budget` holds the forms against what FSDP2, autograd and the checkpoints
of real small runs measure; docs/plan.md says how closely.
"""

from topklm.budget.config import PlanConfig
from topklm.budget.plan import Plan, make_plan

__all__ = ["Plan", "PlanConfig", "make_plan"]
