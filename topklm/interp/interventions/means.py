"""The mean of a neuron over a corpus, for the op "mean"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from topklm.bundles import Bundle
from topklm.errors import DataError
from topklm.interp.interventions.intervention import Site


def bundle_means(bundle: Bundle, layer: int, neurons: Sequence[int], site: Site = "post") -> Tensor:
    """float64 [n]: the mean of each neuron over all tokens of the bundle, those at which it is 0 included.

    Raises `DataError` if the bundle does not have the layer, was collected at the other site of a TopK layer, or was
    read through a cut that the model does not have.
    """
    view = bundle.layer(layer)
    collected = bundle.meta.reading.site
    if bundle.meta.reading.read_topk is not None:
        raise DataError(f"{bundle.path} was read through a TopK that the model does not have; collect it without one")
    if view.kind != "dense" and collected != site:
        raise DataError(f"{bundle.path} was collected {collected} the cut; means for site {site} need a bundle of it")
    return torch.from_numpy(view.stats.sum[list(neurons)] / bundle.n_tokens)
