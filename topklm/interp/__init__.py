"""Reading the neurons of a model: the pass that collects statistics, and what is computed from its bundles."""

from topklm.interp.entropy.config import EntropyConfig
from topklm.interp.entropy.semantic_entropy import semantic_entropy
from topklm.interp.entropy.token_entropy import token_entropy
from topklm.interp.statistics.collect_config import CollectConfig
from topklm.interp.statistics.collection import collect
from topklm.interp.statistics.reading import ReadTopK
from topklm.interp.statistics.selections import Differences, differences, selected_masks

__all__ = [
    "CollectConfig",
    "Differences",
    "EntropyConfig",
    "ReadTopK",
    "collect",
    "differences",
    "selected_masks",
    "semantic_entropy",
    "token_entropy",
]
