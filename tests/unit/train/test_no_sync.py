"""Between two log steps the host never waits for the device: no step reads a value of a tensor."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.train.test_diagnose import config
from topklm.sparsity.patch import sparse_states
from topklm.train import train
from topklm.train.trainer import Trainer
from topklm.train.watch import Watch

ATEN = torch.ops.aten
WAITING = {ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.masked_select.default, ATEN.equal.default}
"""The first is what `.item()`, `.tolist()`, `bool()` and `float()` become."""

ROWS = {ATEN.slice.Tensor, ATEN.select.int, ATEN.ne.Scalar, ATEN.all.default}
"""How the trainer looks, before a micro-batch goes to the device, for rows of it that are padding."""


class Waits(TorchDispatchMode):
    """The operations that a GPU would have to finish its work for. `host`: tensors that lie on the host always, as
    does what is made of them alone."""

    def __init__(self, *host):
        super().__init__()
        self.host, self.seen = [*host], []

    def on_host(self, args):
        return any(isinstance(args[0], torch.Tensor) and args[0] is tensor for tensor in self.host)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func is ATEN.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or (func in WAITING and not self.on_host(args)):
            self.seen.append(str(func))
        out = func(*args, **(kwargs or {}))
        if func in ROWS and self.on_host(args):
            self.host.append(out)
        return out


@pytest.mark.parametrize("activation", [None, "topk", "batchtopk", "jumprelu"])
def test_a_step_reads_nothing(speeches, tmp_path, monkeypatch, activation):
    step, seen = Trainer._train_step, []

    def watched(run, batches):
        host = [*(state.alpha for state in sparse_states(run.model)), *(batch.targets for batch in batches)]
        with Waits(*host) as waits, monkeypatch.context() as patch:
            patch.setattr(Watch, "look", lambda self: None)  # in each step on a CPU only
            result = step(run, batches)
        seen.append(waits.seen)
        return result

    monkeypatch.setattr(Trainer, "_train_step", watched)
    topk = activation and {"k": 4, "n_dense_tail": 1, "activation": activation, "anneal_ratio": 0.5}
    assert train(config(speeches, tmp_path / "run", steps=4, topk=topk)) == 0
    assert seen == [[]] * 4


def test_reading_a_value_is_seen():
    host = torch.ones(())
    with Waits(host) as waits:
        torch.ones(3).sum().item()
        torch.ones(3)[torch.ones(3) > 0]
        assert bool(host)
    assert waits.seen == ["aten._local_scalar_dense.default", "aten.index.Tensor"]
