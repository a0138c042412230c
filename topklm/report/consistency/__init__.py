"""Consistency across seeds as figures, tables and sentences, from rows of means over pairs of runs."""

from topklm.report.consistency.figures import consistency_drawings
from topklm.report.consistency.statements import statements
from topklm.report.consistency.tables import consistency_tables, terminal_table

__all__ = ["consistency_drawings", "consistency_tables", "statements", "terminal_table"]
