"""Bundles: activation statistics on disk, exact and mergeable. Knows no model and no torch; see docs/bundles.md."""

from topklm.bundles.bundle import Bundle, LayerView, open_bundle, open_bundles
from topklm.bundles.comparable import incomparable
from topklm.bundles.layer_stats import LayerStats
from topklm.bundles.merge import merge_bundles
from topklm.bundles.meta import Corpus, CorpusPart, Made, Meta, ModelSource, PartMeta, Reading, Settings
from topklm.bundles.named import NamedBundle, bundles_in
from topklm.bundles.sketch import Sketch
from topklm.bundles.token_table import TokenTable
from topklm.bundles.write import write_bundle

__all__ = [
    "Bundle",
    "Corpus",
    "CorpusPart",
    "LayerStats",
    "LayerView",
    "Made",
    "Meta",
    "ModelSource",
    "NamedBundle",
    "PartMeta",
    "Reading",
    "Settings",
    "Sketch",
    "TokenTable",
    "bundles_in",
    "incomparable",
    "merge_bundles",
    "open_bundle",
    "open_bundles",
    "write_bundle",
]
