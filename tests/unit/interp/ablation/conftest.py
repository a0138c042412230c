"""A tiny checkpoint in float64, its data and its bundle."""

import pytest

from tests.unit.interp.tiny import collected, write_checkpoint, write_data
from topklm import load_model
from topklm.interp.ablation import AblateConfig


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """(data, checkpoint, bundle)."""
    root = tmp_path_factory.mktemp("ablation")
    data = write_data(root / "data")
    checkpoint = write_checkpoint(root / "run", data)
    return data, checkpoint, collected(checkpoint, root / "bundle")


@pytest.fixture(scope="session")
def loaded(place):
    """(model in float64, LoadedConfig)."""
    import torch

    model, _, config = load_model(place[1], dtype=torch.float64)
    return model, config


@pytest.fixture
def config(place, tmp_path):
    """Makes a configuration of these."""
    data, checkpoint, bundle = place

    def make(**settings):
        usual = {"ckpt": str(checkpoint), "bundle": str(bundle.path), "data": str(data), "neurons": "[0:3, 1:5]",
                 "tokens": 60, "top_contexts": 3, "controls": 2, "density_tolerance": 100.0, "dtype": "fp64",
                 "batch_size": 3, "bootstrap": 200, "out": str(tmp_path / "out")}  # fmt: skip
        return AblateConfig(**(usual | settings))

    return make
