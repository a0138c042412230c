"""Tables and figures of finished or running runs: functions of their files, without a model and without torch."""

from topklm.report.compare import Comparison, Row, compare
from topklm.report.runs import Run, read_run, read_runs
from topklm.report.write import write_report

__all__ = ["Comparison", "Row", "Run", "compare", "read_run", "read_runs", "write_report"]
