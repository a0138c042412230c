"""Sweeps over a small configuration that is not trained."""

import pytest

from topklm.launch import SweepConfig

BASE = """
steps: 20
data: {root_dir: nowhere, sources: {a: 1.0}, seq_len: 32, batch_size: 2, global_batch_size: 4}
model: {dim: 32, n_layers: 4, n_heads: 2, multiple_of: 16, vocab_size: 100}
topk: {k: 8, n_dense_tail: 1}
optim: {warmup: 2}
distributed: {model_dtype: fp32}
"""


@pytest.fixture
def make_sweep(tmp_path):
    """A `SweepConfig` over BASE in the test's directory."""
    (tmp_path / "base.yaml").write_text(BASE)

    def make(**settings):
        return SweepConfig(base_config=str(tmp_path / "base.yaml"), dump_dir=str(tmp_path / "sweep"), **settings)

    return make
