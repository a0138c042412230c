"""The example of docs/activations.md is a whole activation in one file, as it says."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_stack as tiny
import torch

from topklm.errors import ConfigError
from topklm.sparsity import TopKConfig, record_health, registry

PAGE = Path(__file__).parents[3] / "docs" / "activations.md"


@pytest.fixture
def example(tmp_path: Path) -> Iterator[None]:
    code = re.search(r"## Adding one.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "nearmax.py").write_text(code[1])
    spec = importlib.util.spec_from_file_location("nearmax_example", tmp_path / "nearmax.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield
    del sys.modules[spec.name], registry._ACTIVATIONS["nearmax"]


def test_the_example_trains_and_is_known_everywhere(example: None) -> None:
    cfg = TopKConfig(activation="nearmax", n_dense_tail=2, k=99, options={"share": 0.25})
    model = tiny.make_stack(cfg)
    losses = tiny.train_steps(model, 30, 10)
    assert sum(losses[-5:]) / 5 < losses[0] - 0.5
    tokens = tiny.make_batch(0)
    stream = model.eval().layers[0](model.tok_embeddings(tokens))
    assert ((stream > 0) == (stream > 0.25 * stream.amax(-1, keepdim=True))).all()
    with record_health(model) as health, torch.no_grad():
        model(tokens)
    assert 0 < health.summary()["topk/l0_mean"] < tiny.DIM
    with pytest.raises(ConfigError, match=r"options.shar: is no option .* share"):
        tiny.make_stack(TopKConfig(activation="nearmax", options={"shar": 0.1}))


def test_two_of_one_name_are_refused(example: None) -> None:
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("nearmax")(registry.activation_class("nearmax"))
