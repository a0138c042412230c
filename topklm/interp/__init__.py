"""Reading the neurons of a model: the pass that collects statistics, and what is computed from its bundles."""

from topklm.interp.collect_config import CollectConfig
from topklm.interp.collection import collect
from topklm.interp.entropy_config import EntropyConfig
from topklm.interp.reading import ReadTopK
from topklm.interp.selections import Differences, differences, selected_masks
from topklm.interp.semantic_entropy import semantic_entropy
from topklm.interp.token_entropy import token_entropy

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
