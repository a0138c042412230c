"""The result of labelling by words: what `topklm.report.labels` shows, from what was tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from topklm.bundles import NamedBundle
from topklm.interp.labels.config import WordsConfig
from topklm.interp.labels.word_labels import WordLabels
from topklm.interp.labels.wordnet import CLASSES, Lexicon
from topklm.report.labels import (
    ClassedModel,
    class_drawings,
    class_statements,
    class_table,
    layer_table,
    neuron_table,
)
from topklm.report.result import Result


def classed_model(config: WordsConfig, bundle: NamedBundle, found: WordLabels) -> ClassedModel:
    """One bundle's neurons as figures and tables take them."""
    return ClassedModel(
        named=bundle, layer=found.layer, silent=found.silent, tested=found.tested.number >= 0,
        significant=found.tested.q <= config.fdr, beyond=found.other.q <= config.fdr, number=found.tested.number,
        shuffled=found.shuffled,
    )  # fmt: skip


def words_result(
    config: WordsConfig, models: Sequence[ClassedModel], found: Sequence[WordLabels], lexicon: Lexicon
) -> Result:
    """Tables, figures and sentences about some bundles that compare."""
    universe = found[0].words
    members = np.bincount(universe.classes, minlength=len(CLASSES))
    settings = ", ".join(f"{key} {value}" for key, value in asdict(config).items() if key not in ("bundle", "out"))
    irregular = "with" if lexicon.has_exceptions else "without"
    return Result(
        kind="labels",
        title="Classes of words",
        statements=[*class_statements(models, CLASSES, config.chance, config.fdr), universe.coverage.sentence()],
        provenance=[
            *(each.named.provenance() for each in models),
            f"WordNet {lexicon.sha256[:12]}, {irregular} irregular forms; {settings}",
        ],
        tables={
            "labels_layers": layer_table(models, config.chance),
            "labels_classes": class_table(models, CLASSES, members),
            "labels_neurons": neuron_table(models[0], _rows(config, found[0])),
        },
        drawings=class_drawings(models, CLASSES, config.chance, config.fdr),
        data={
            "models": [
                {
                    "label": model.named.label, "bundle": model.named.bundle.sha256,
                    "tested": int(model.tested.sum()), "share": model.share(model.significant),
                    "share_other_null": model.share(model.beyond), "shuffled": model.shuffled,
                    "coverage": asdict(each.words.coverage),
                }
                for model, each in zip(models, found, strict=True)
            ],
            "neurons": [row["neuron"] for row in _rows(config, found[0])], "settings": asdict(config),
            "wordnet": lexicon.sha256,
        },
    )  # fmt: skip


def _rows(config: WordsConfig, found: WordLabels) -> list[dict]:
    """The significant neurons of one bundle."""
    rows = []
    for i in np.flatnonzero(found.tested.q <= config.fdr).tolist():
        number = int(found.tested.number[i])
        members = [found.words.entries[w] for w in found.top[i] if w >= 0]
        rows.append({
            "neuron": f"{found.layer[i]}:{found.neuron[i]}", "label": CLASSES[number], "q": float(found.tested.q[i]),
            "lift": float(found.tested.lift[i]),
            "words": [e.lemma.replace("_", " ") for e in members if e.number == number],
        })  # fmt: skip
    return rows
