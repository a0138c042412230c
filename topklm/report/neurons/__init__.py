"""What neurons respond to, as figures, tables and one page: functions of bundles and of their measured entropies."""

from topklm.report.neurons.read import Measured, comparable, read_measured
from topklm.report.neurons.verdict import verdicts
from topklm.report.neurons.write import write_neurons

__all__ = ["Measured", "comparable", "read_measured", "verdicts", "write_neurons"]
