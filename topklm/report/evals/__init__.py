"""Evaluations of checkpoints compared: functions of the files in evals/, without a model and without torch."""

from topklm.report.evals.compare import EvalComparison, compare_evaluations
from topklm.report.evals.read import Evaluation, read_evaluation
from topklm.report.evals.tables import rich_tables
from topklm.report.evals.write import write_comparison

__all__ = [
    "EvalComparison",
    "Evaluation",
    "compare_evaluations",
    "read_evaluation",
    "rich_tables",
    "write_comparison",
]
