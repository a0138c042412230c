"""Planted bundles with planted entropies: figures and sentences about them are known in advance."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.bundles.reference import brute, meta_of, random_tokens
from topklm.bundles import Reading, open_bundle, write_bundle

VOCAB, WIDTH, LAYERS, TAIL = 9, 6, 4, 1
PIECES = ["<unk>", " the", "a\nb", "</script><b>", "|x|", " ", "\u202eabc", "$5", "`q`"]
SETTINGS = {"negative": "clamp", "min_count": 2, "bins": 100, "leave_one_out": True}
FIGURES = (
    "token_entropy", "effective_tokens", "token_entropy_normalised", "mass_entropy", "negative_mass", "active_types",
    "token_explained", "token_explained_corrected", "semantic_entropy", "semantic_entropy_random", "coherence",
    "coherence_p", "coherence_q", "effective_pairs", "response_tokens", "response_tokens_used",
)  # fmt: skip
STATED = ("token_entropy", "effective_tokens", "semantic_entropy", "semantic_entropy_random", "coherence",
          "token_explained_corrected")  # fmt: skip


@cache
def statistics(layer, sparse):
    """Of one layer's 40 random tokens; the token types are the same in all layers."""
    tokens = random_tokens(layer, sparse=sparse, last=layer == LAYERS - 1)
    tokens.types = random_tokens(0).types
    return brute(tokens, VOCAB)


class Planter:
    """Writes a bundle whose neurons of layer l have token entropies level + spread * (-1 or 1), neuron 0 silent."""

    def __init__(self, root: Path):
        self.root = root

    def __call__(
        self, name, *, run="topk", step=100, alpha=0.0, init="checkpoint", cut=None, level=2.0, spread=0.1,
        windows="w" * 64, tokenizer="t" * 64, settings=SETTINGS, limits=True, anneal=50, fired=500,
        preset="recommended", seed=None, section=None,
    ):  # fmt: skip
        is_topk = run.startswith("topk")
        tail = TAIL if is_topk else 0
        sparse = [(is_topk and alpha == 0 and layer < LAYERS - tail) or bool(cut) for layer in range(LAYERS)]
        kinds = {str(layer): "topk" if each else "dense" for layer, each in enumerate(sparse)}
        meta = meta_of(250, 4, windows, kinds, WIDTH, VOCAB)
        topk = {"k": 3, "n_dense_tail": TAIL, "anneal_steps": anneal, **(section or {})} if is_topk else None
        model = dataclasses.replace(
            meta.model, run=run, path=f"{self.root}/runs/{run}/checkpoints/{step:010d}", step=step, init=init,
            alpha=alpha if is_topk else None, topk=topk,
            model=meta.model.model | ({} if seed is None else {"seed": seed}),
        )  # fmt: skip
        corpus = dataclasses.replace(meta.corpus, tokenizer_sha256=tokenizer)
        reading = Reading(site="post", read_topk=cut)
        meta = dataclasses.replace(meta, model=model, corpus=corpus, reading=reading)
        stats = [(layer, statistics(layer, sparse[layer])) for layer in range(LAYERS)]
        counts = np.bincount(random_tokens(0).types, minlength=VOCAB).astype(np.int64)
        path = self.root / name
        embedding = np.random.default_rng(0).normal(size=(VOCAB, WIDTH))
        write_bundle(path, meta, counts, np.arange(250) * 4, stats, model=(embedding, PIECES))
        self._entropies(open_bundle(path), kinds, level, spread, settings, limits, fired, preset)
        return path

    def _entropies(self, bundle, kinds, level, spread, settings, limits, fired, preset):
        directory = bundle.path / "entropy" / preset
        directory.mkdir(parents=True)
        n = LAYERS * WIDTH
        neuron = np.tile(np.arange(WIDTH), LAYERS)
        silent = neuron == 0
        values = np.where(silent, np.nan, level + spread * np.where(neuron % 2 == 0, -1, 1))
        columns = {name: np.where(silent, np.nan, 0.5 + 0.01 * neuron) for name in FIGURES}
        columns |= {"token_entropy": values, "coherence_q": np.where(silent, np.nan, 0.1 * (WIDTH - neuron))}
        density = np.where(silent, 0.0, fired / bundle.n_tokens)
        table = {
            "step": np.full(n, 100), "layer": np.repeat(np.arange(LAYERS), WIDTH), "neuron": neuron,
            "kind": np.repeat([kinds[str(layer)] for layer in range(LAYERS)], WIDTH), "density": density,
            "silent": silent, **columns,
        }  # fmt: skip
        pq.write_table(pa.table(table), directory / "neurons.parquet")
        rows = []
        for layer in range(LAYERS):
            row = {"layer": layer, "kind": kinds[str(layer)], "neurons": WIDTH, "silent": 1}
            for name in STATED:
                of_layer = columns[name][layer * WIDTH + 1 : (layer + 1) * WIDTH]
                row |= {f"{name}_mean": float(of_layer.mean()), f"{name}_sd": float(of_layer.std(ddof=1))}
            rows.append(row)
        growth = [
            {"layer": layer, "tokens": tokens, "types": 9, "neurons": 5, "token_entropy": level - 100 / tokens,
             "split_half_error": 0.05 if tokens == 1000 else None,
             "limit": level + 0.5 if tokens == 1000 and limits else None}
            for layer in range(LAYERS) for tokens in (250, 500, 1000)
        ]  # fmt: skip
        content = {
            "format_version": 1, "preset": preset, "settings": settings, "embedding": "own",
            "bundle": {"path": str(bundle.path), "sha256": bundle.sha256}, "n_tokens": bundle.n_tokens, "n_types": 8,
            "convergence": growth, "layers": rows,
        }  # fmt: skip
        (directory / "entropy.json").write_text(json.dumps(content))


@pytest.fixture
def plant(tmp_path):
    return Planter(tmp_path)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Paths of twins, the corrected reading of the dense one, and controls."""
    plant = Planter(tmp_path_factory.mktemp("family"))
    return [
        plant("topk-bundle", level=1.0),
        plant("dense-bundle", run="dense", level=3.0),
        plant("dense-read", run="dense", cut={"k": 3, "relu": True, "n_dense_tail": 0}, level=1.5),
        plant("topk-init", init="random", level=2.5),
        plant("dense-init", run="dense", init="random", level=3.5),
    ]
