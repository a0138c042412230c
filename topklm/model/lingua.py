"""Meta Lingua's own blocks in our transformer: `model.backend: lingua`.

Lingua is on no package index; its users have a checkout on PYTHONPATH. Of it only `lingua.transformer` is imported,
never its `apps`, whose name is that of our programs. Embedding, norm, head and loss are ours, and so are the rotary
angles, computed in every pass: Lingua's buffer of them would be lost through the meta device. Lingua's blocks attend
in both directions unless they are given a mask, so they always get one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn, stack

from topklm.errors import ConfigError
from topklm.model.cache import KVCache
from topklm.model.config import ModelConfig, lingua_ffn_width
from topklm.model.transformer import Transformer, rotary_table, same_document_mask
from topklm.optional import require

GET_LINGUA = (
    "git clone https://github.com/facebookresearch/lingua ../lingua && export PYTHONPATH=$(realpath ../lingua) "
    "&& pip install 'topklm[lingua]'"
)


class LinguaTransformer(Transformer):
    """`Transformer` with the blocks of Meta Lingua: same interface, same parameters, same initial weights."""

    def new_block(self, config: ModelConfig) -> nn.Module:
        lingua = lingua_transformer()
        return lingua.TransformerBlock(lingua.BaseTransformerArgs(**lingua_sizes(config)))

    def hidden(self, tokens: Tensor, document_ids: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        if cache is not None:
            raise ConfigError("Lingua's blocks take no cache of ours; load_model gives the native model, which does")
        h, config = self.tok_embeddings(tokens), self.config
        cos, sin = rotary_table(tokens.shape[1], config.head_width, config.rope_theta, config.rope_scaling, h)
        turns = stack((stack((cos, -sin), -1), stack((sin, cos), -1)), -2)  # [T, d/2, 2, 2] rotation matrices
        mask = "causal" if document_ids is None else same_document_mask(document_ids)
        for layer in self.layers:
            h = layer(h, turns, mask=mask)
        return h


def lingua_sizes(config: ModelConfig) -> dict[str, Any]:
    """The fields of Lingua's `BaseTransformerArgs` that give a model of these sizes."""
    multiple_of, multiplier = config.multiple_of, config.ffn_dim_multiplier
    if config.ffn_dim is not None:
        multiple_of, multiplier = lingua_ffn_rule(config.dim, config.ffn_dim)
    return {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "head_dim": config.head_width,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple_of,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "init_base_std": config.init_base_std,
        "init_std_factor": config.init_std_factor,
        "max_seqlen": config.max_seqlen,
    }


def lingua_ffn_rule(dim: int, ffn_dim: int) -> tuple[int, float | None]:
    """(multiple_of, ffn_dim_multiplier) with which Lingua's rule gives exactly `ffn_dim`; there is always such a pair.

    The roundest one: the largest of 256, 128, ..., 1 that divides it, and no multiplier or one of few digits. With
    w = int(8 dim / 3) the multiplier (ffn_dim + 1/2) / w lies in the middle of those with int(multiplier w) = ffn_dim.
    """
    multiple_of = next(m for m in (256 >> i for i in range(9)) if ffn_dim % m == 0)
    exact = (ffn_dim + 0.5) / int(8 * dim / 3)
    candidates = (None, *(round(exact, digits) for digits in range(1, 17)), exact)
    return multiple_of, next(m for m in candidates if lingua_ffn_width(dim, multiple_of, m) == ffn_dim)


def find_lingua() -> Path:
    """The file of Lingua's blocks, looked up without importing anything of it. Raises `ConfigError`.

    Not imported, because with it comes xformers, which looks at the GPU before the process has chosen its own.
    """
    spec = importlib.util.find_spec("lingua")
    if spec is None:
        raise ConfigError(f"model.backend=lingua needs Meta Lingua, and there is none on PYTHONPATH: {GET_LINGUA}")
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    file = next((place / "transformer.py" for place in places if (place / "transformer.py").is_file()), None)
    if file is None:
        for place in places:
            if (place / "lingua" / "transformer.py").is_file():  # a checkout in the working directory
                raise ConfigError(f"{place} is a checkout of Meta Lingua: export PYTHONPATH={place.resolve()}")
        raise ConfigError(
            f"the package lingua at {spec.origin or places} is not Meta Lingua, it has no transformer.py (a language "
            f"detector has that name too); put Meta Lingua before it on PYTHONPATH: {GET_LINGUA}"
        )
    if importlib.util.find_spec("xformers") is None:
        raise ConfigError("Meta Lingua imports xformers, which is missing: pip install 'topklm[lingua]'")
    return file


def lingua_sha256() -> str:
    """Hash of the file of Lingua's blocks: what a run's provenance says of them. Raises `ConfigError`."""
    return hashlib.sha256(find_lingua().read_bytes()).hexdigest()


def lingua_transformer() -> Any:
    """The module `lingua.transformer`. Raises `ConfigError` if it is missing, broken or another package's."""
    find_lingua()
    with _without_warnings_of("xformers"):  # of kernels that it lacks here; the attention is torch's own
        module = require("lingua.transformer", "topklm[lingua]")
    missing = [name for name in ("TransformerBlock", "BaseTransformerArgs") if not hasattr(module, name)]
    if missing:
        raise ConfigError(f"{module.__file__} is not Meta Lingua's, it has no {', '.join(missing)}: {GET_LINGUA}")
    return module


@contextmanager
def _without_warnings_of(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
