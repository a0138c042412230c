"""Statistics that are added up on a GPU, against the same activations on the CPU."""

import numpy as np
import pytest
import torch

from tests.unit.bundles.reference import SETTINGS, assert_equal
from topklm.interp.statistics.accumulate import LayerAccumulator
from topklm.interp.statistics.reading import ReadTopK, read_layer
from topklm.interp.statistics.token_batch import TokenBatch
from topklm.sparsity import TopKConfig
from topklm.sparsity.registry import build_activation

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

N, V, WIDTH = 3000, 50, 64


@pytest.mark.parametrize("kind", ["topk", "annealing", "dense", "read"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_are_those_of_the_cpu(kind, dtype):
    x = torch.randn(4, N // 4, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    activation = build_activation(TopKConfig(k=8))
    alpha = {"topk": 0.0, "annealing": 0.5}.get(kind)
    output = x if alpha is None else activation(x, torch.tensor(alpha) if alpha else None)
    rng = np.random.default_rng(0)
    rows, positions = rng.integers(0, V, N), rng.permutation(N)
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        made = LayerAccumulator(
            0, WIDTH, V, SETTINGS, device, selects=kind != "dense", signed=kind in ("dense", "annealing"), has_next=True
        )  # fmt: skip
        for part in range(2):
            sequences, tokens = slice(2 * part, 2 * part + 2), slice(part * N // 2, (part + 1) * N // 2)
            pre = None if alpha is None else x[sequences].to(device)
            reading = read_layer(
                output[sequences].to(device), pre, None if alpha is None else activation,
                alpha=alpha, cut=ReadTopK(k=8) if kind == "read" else None,
            )  # fmt: skip
            made.add(reading, TokenBatch.of(rows[tokens], positions[tokens], device))
            made.add_runs(reading, reading.fired.to(torch.int16))
            made.add_next(reading.fired, reading.fired.roll(1, 0))
        found.append(made.stats(np.arange(V), np.ones(V, bool)))
    assert_equal(*found, rtol=1e-9)
