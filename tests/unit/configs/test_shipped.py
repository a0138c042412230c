"""Every YAML that is shipped loads; the paper's models have the paper's sizes, counted on the meta device."""

import dataclasses
from pathlib import Path

import pytest

from tests.unit.configs import paper_hours
from topklm.config import load_config
from topklm.data.prepare_config import PrepareConfig
from topklm.model import build_model
from topklm.train import TrainConfig

ROOT = Path(__file__).parents[3]
TRAIN = sorted(p for room in ("quickstart", "paper", "retrofit") for p in (ROOT / "configs" / room).glob("*.yaml"))
# Millions of parameters with a vocabulary of 32,000, untied; the tables of the method's description.
PAPER = {
    "d1024_l8": 168.3, "d1024_l16": 271.1, "d1024_l24": 373.9,
    "d2048_l8": 403.7, "d2048_l16": 676.4, "d2048_l24": 949.1,
    "d2048_l8_lingua_ffn": 542.1, "d2048_l16_lingua_ffn": 953.2, "d2048_l24_lingua_ffn": 1364.3,
}  # fmt: skip


@pytest.mark.parametrize("path", TRAIN, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_training_configs_load(path):
    config = load_config(TrainConfig, [f"config={path}"])
    if path.name != "base.yaml":
        assert config.name == path.stem
    assert config.dump_dir.endswith(config.name)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "data").glob("*.yaml")), ids=lambda p: p.name)
def test_preparation_configs_load(path):
    config = load_config(PrepareConfig, [f"config={path}"])
    assert config.sources
    assert config.val_fraction > 0


@pytest.mark.parametrize(("name", "millions"), PAPER.items())
def test_the_papers_models(name, millions):
    sparse = load_config(TrainConfig, [f"config={ROOT}/configs/paper/topk_{name}.yaml"])
    dense = load_config(TrainConfig, [f"config={ROOT}/configs/paper/dense_{name}.yaml"])
    assert (sparse.topk.k, sparse.topk.n_dense_tail) == (64, 2)
    assert dense.topk is None
    # Twins: nothing else differs.
    assert dense.model == sparse.model
    assert (dense.optim, dense.data, dense.steps) == (sparse.optim, sparse.data, sparse.steps)
    for config in (sparse, dense):
        model = build_model(config.model, config.topk, "meta")
        count = sum(p.numel() for p in model.parameters())
        assert count == config.model.n_params
        assert count / 1e6 == pytest.approx(millions, abs=0.05)
        assert len(model.layers) == int(name.split("_l")[1].split("_")[0])


def test_every_paper_config_is_in_the_table():
    shipped = {p.stem.split("_", 1)[1] for p in (ROOT / "configs" / "paper").glob("*_d*.yaml")}
    assert shipped == set(PAPER)


def test_the_retrofits_differ_from_their_twins_in_the_topk_alone():
    for name in ("smollm2", "smollm2_cpu"):
        sparse, dense = (
            load_config(TrainConfig, [f"config={ROOT}/configs/retrofit/{file}.yaml", "name=x", "dump_dir=x"])
            for file in (name, f"{name}_dense")
        )
        assert sparse.init_from == "exports/smollm2"
        assert sparse.topk is not None
        assert dense == dataclasses.replace(sparse, topk=None)


def test_the_hours_of_the_reproduction_are_those_of_the_configurations():
    """Independent of the package's count: 6 per weight that multiplies, 12 L S D for attention."""
    text = (ROOT / "docs" / "reproduce.md").read_text()
    told = [line for line in text.splitlines() if line.startswith("| `topk_")]
    assert told == paper_hours.lines()
    assert f"All six pairs: {paper_hours.all_pairs()} hours" in text
    flops = 6 * (168.3e6 - 32_000 * 1024) + 12 * 8 * 2048 * 1024
    hours = 20_000 * 512 * 2048 * flops / (8 * 989.5e12 * 0.45) / 3600
    (first,) = [line for line in told if "`topk_d1024_l8`" in line]
    assert first.split("|")[5].strip() == f"{hours:.1f}"
