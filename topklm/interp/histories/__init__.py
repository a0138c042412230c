"""Histories: where a dimension keeps its meaning, over checkpoints and over layers, from bundles alone."""

from topklm.interp.histories.config import MatchConfig, PersistenceConfig, TraceConfig
from topklm.interp.histories.curves import match_result
from topklm.interp.histories.survival import persistence_result
from topklm.interp.histories.trace import trace_result

__all__ = [
    "MatchConfig",
    "PersistenceConfig",
    "TraceConfig",
    "match_result",
    "persistence_result",
    "trace_result",
]
