"""What stands for the neurons of a run when runs are compared: a direction for each, over shared coordinates.

profiles      what a neuron does: its token profile in one layer (`topklm.interp.profiles`)
embedding     what feeds it: column i of the input embedding, over the token types
unembedding   what it feeds: column i of the output matrix, over the token types
files         rows of any matrix [m, d], the decoder of a sparse autoencoder for example

Neuron i of a TopK language model is coordinate i of the residual stream, in every layer the same one: so columns of the
embedding and of the output matrix are directions of neurons, but the same for all layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from topklm.bundles import Bundle, LayerView
from topklm.config import build
from topklm.errors import CheckpointError, ConfigError, DataError, Problem
from topklm.interp.entropy.layer_means import LayerMeans
from topklm.interp.profiles import Centre, token_profiles
from topklm.optional import require

if TYPE_CHECKING:
    from topklm.model import Transformer

ARRAYS: Mapping[str, bool] = {
    "W_dec": False, "decoder": False, "decoder.weight": True, "W_enc": True, "encoder": False, "encoder.weight": False,
}  # fmt: skip
"""Names that are known in files, and whether they are stored as [d, m]: SAELens' and those of torch's linear layers."""


@dataclass(frozen=True, kw_only=True)
class Dictionary:
    """Directions of the neurons of one run that have one."""

    rows: np.ndarray
    """[m, d] of length 1."""
    index: np.ndarray
    """int64 [m], ascending: which neurons they are."""
    density: np.ndarray
    """float64 [m]: share of the tokens in which each fired; NaN where that is not known."""
    width: int
    """Neurons there are; `width - m` are left out as silent."""

    def only(self, index: np.ndarray) -> Dictionary:
        """Of these neurons, all of which it must have."""
        place = np.searchsorted(self.index, index)
        return replace(self, rows=self.rows[place], index=index, density=self.density[place])


def profile_dictionary(source: LayerView | LayerMeans, types: np.ndarray, centre: Centre) -> Dictionary:
    """Token profiles of one layer over the given types; without the neurons that fired on no token or have none."""
    found = token_profiles(source, types, centre=centre)
    kept = np.flatnonzero(~found.silent & (found.density > 0))
    return Dictionary(rows=found.rows[kept], index=kept, density=found.density[kept], width=found.width)


def profile_ceiling(bundle: Bundle, layer: int, types: np.ndarray, centre: Centre) -> float:
    """The mean cosine that one run's profiles would have with those of the same run over other text of the same size.

    From two halves of its windows: with r the cosine of a neuron's two profiles, 2 r / (1 + r) (Spearman and Brown). No
    two runs can be expected to be more alike than a run is to itself. Over the types that occur in both halves; NaN if
    the bundle was not halved.
    """
    parts = [bundle.half(name) for name in ("a", "b")]
    if not all(parts):
        return float("nan")
    means = [LayerMeans(half, layer) for half in parts]
    types = types[np.all([half.counts[types] > 0 for half in means], axis=0)]
    a, b = (profile_dictionary(half, types, centre) for half in means)
    both = np.intersect1d(a.index, b.index)
    r = np.einsum("id,id->i", a.only(both).rows, b.only(both).rows, dtype=np.float64)
    r = np.maximum(r, 0.0)  # of nothing but noise some are below
    return float((2 * r / (1 + r)).mean()) if len(r) else float("nan")


def column_dictionary(table: np.ndarray, density: np.ndarray | None = None) -> Dictionary:
    """Columns of a table [R, m] as directions; those that are zero are left out."""
    return row_dictionary(table.T, density)


def row_dictionary(rows: np.ndarray, density: np.ndarray | None = None) -> Dictionary:
    """Rows of a floating matrix [m, d] as directions; those that are zero but for rounding are left out.

    Raises `DataError` for rows whose squares are no finite numbers of their dtype.
    """
    with np.errstate(over="ignore"):
        length = np.linalg.norm(rows, axis=1)
    if not np.isfinite(length).all():
        raise DataError(f"entries of a dictionary are too large for {rows.dtype}: divide it by its largest one")
    kept = np.flatnonzero(length > 8 * np.finfo(rows.dtype).eps * length.max(initial=0.0))
    known = np.full(len(rows), np.nan) if density is None else density
    return Dictionary(rows=rows[kept] / length[kept, None], index=kept, density=known[kept], width=len(rows))


def embedding_dictionary(bundle: Bundle, types: np.ndarray) -> Dictionary:
    """Columns of the input embedding over the given types. Density is the mean over the bundle's layers."""
    return column_dictionary(bundle.embedding[types], _mean_density(bundle))


def unembedding_dictionary(bundle: Bundle, types: np.ndarray) -> Dictionary:
    """Columns of the output matrix over the given types, each centred over the whole vocabulary before.

    What is the same for all tokens in a column changes no probability. Reads the bundle's checkpoint. Raises
    `CheckpointError` where it is not there any more, or is another one.
    """
    table = _model(bundle).head_weight.detach().double().numpy()  # [V, N]
    return column_dictionary((table - table.mean(0))[types], _mean_density(bundle))


def checkpoint_of(bundle: Bundle) -> Path:
    """Where a bundle's checkpoint is: the place that it names, or beside it in its run. Raises `CheckpointError`."""
    named = Path(bundle.meta.model.path)
    places = [named, *(run / "checkpoints" / named.name for run in bundle.path.absolute().parents[1:2])]
    for place in places:
        if place.exists():
            return place
    raise CheckpointError(
        f"{bundle.path} is of the checkpoint {named}, which is not there: the unembedding is read from it. Start where "
        "that path leads to it, or compare another dictionary"
    )


def read_matrix(path: Path, array: str | None, transpose: bool | None) -> np.ndarray:
    """[m, d] from a .npy file, or the array of that name of a .safetensors file; without a name the decoder in it.

    `transpose`: whether it is stored as [d, m]; None: as `ARRAYS` says of its name, else not. Raises `ConfigError`.
    """
    safetensors = require("safetensors", "topklm[bundles]")
    require("safetensors.numpy", "topklm[bundles]")
    try:
        if path.suffix == ".npy":
            found, name = np.load(path, allow_pickle=False), ""
        else:
            arrays = safetensors.numpy.load_file(path)
            name = array or _decoder(path, arrays)
            if name not in arrays:
                raise ValueError(f"it has no array {name!r}; it has {', '.join(arrays)}")
            found = arrays[name]
    except (OSError, ValueError, EOFError, TypeError, safetensors.SafetensorError) as error:  # TypeError: bfloat16
        raise ConfigError([Problem("files", f"{path} cannot be read: {error}")]) from error
    is_matrix = found.ndim == 2 and found.dtype.kind in "fiub"
    if not is_matrix or not found.any() or not np.isfinite(found).all():
        told = f"{path}: {list(found.shape)} is no matrix [m, d] of finite real numbers ({found.dtype}), not all 0"
        raise ConfigError([Problem("files", told)])
    found = found.astype(np.promote_types(found.dtype, np.float32), copy=False)
    return found.T if (ARRAYS.get(name, False) if transpose is None else transpose) else found


def _decoder(path: Path, arrays: Mapping[str, Any]) -> str:
    known = [name for name in ARRAYS if name in arrays and "dec" in name]
    if not arrays:
        raise ValueError("it has no array")
    if not known and len(arrays) > 1:
        raise ValueError(f"which of {', '.join(arrays)} is the decoder? Name it with array=NAME")
    return known[0] if known else next(iter(arrays))


def _mean_density(bundle: Bundle) -> np.ndarray:
    return np.mean([bundle.layer(layer).stats.fired for layer in bundle.layers], axis=0) / bundle.n_tokens


def _model(bundle: Bundle) -> Transformer:
    """The model whose activations a bundle holds."""
    from topklm.checkpoint import load_model
    from topklm.model import ModelConfig, build_model

    source = bundle.meta.model
    if source.init == "random":
        return build_model(build(ModelConfig, source.model), None)
    model, _, loaded = load_model(checkpoint_of(bundle))
    if source.sha256 is not None and loaded.sha256 != source.sha256:
        raise DataError(f"{loaded.path} is not the checkpoint any more that {bundle.path} was collected from")
    return model
