"""Consistency across seeds: whether two runs of one configuration find the same neurons; see docs/consistency.md."""

from topklm.interp.consistency.config import ConsistencyConfig
from topklm.interp.consistency.inputs import Inputs, open_inputs
from topklm.interp.consistency.pairs import Measured, measure
from topklm.interp.consistency.summary import clouds_of, rows_of, strata_of

__all__ = ["ConsistencyConfig", "Inputs", "Measured", "clouds_of", "measure", "open_inputs", "rows_of", "strata_of"]
