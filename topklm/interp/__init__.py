"""Reading the neurons of a model: the pass that collects statistics."""

from topklm.interp.collect_config import CollectConfig
from topklm.interp.collection import collect
from topklm.interp.reading import ReadTopK
from topklm.interp.selections import Differences, differences, selected_masks

__all__ = ["CollectConfig", "Differences", "ReadTopK", "collect", "differences", "selected_masks"]
