"""What came of a sweep: one row per run, means over seeds, ratios to the dense twins, tables and figures."""

from topklm.report.sweeps.groups import Group, group
from topklm.report.sweeps.rows import Row, SweepRun, read_rows
from topklm.report.sweeps.write import write_sweep

__all__ = ["Group", "Row", "SweepRun", "group", "read_rows", "write_sweep"]
