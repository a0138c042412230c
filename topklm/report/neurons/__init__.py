"""What neurons respond to, as figures, tables and one page: functions of bundles and of their measured entropies."""

from topklm.report.neurons.read import Measured, comparable, read_measured
from topklm.report.neurons.seeds import over_seeds, seed_statements
from topklm.report.neurons.verdict import verdicts
from topklm.report.neurons.write import write_neurons

__all__ = ["Measured", "comparable", "over_seeds", "read_measured", "seed_statements", "verdicts", "write_neurons"]
