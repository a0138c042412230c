"""Small runs whose memory is counted, on one process or as one rank of a pretended world."""

import dataclasses
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.unit.budget.live import LiveBytes
from topklm.budget.setting import setting_of
from topklm.config import build
from topklm.config.load import put
from topklm.model import build_model, init_weights
from topklm.train import TrainConfig
from topklm.train.optim import build_optimizer
from topklm.train.parallel import World, parallelize


@pytest.fixture
def make_config():
    """A small TrainConfig, some keys changed."""

    def make(**changes):
        tree = {
            "dump_dir": "x",
            "data": {"root_dir": "y", "sources": {"a": 1.0}, "seq_len": 128, "batch_size": 2},
            "model": {"dim": 128, "n_layers": 3, "n_heads": 4, "ffn_dim": 352, "vocab_size": 512, "loss_chunk": 64},
            "topk": {"k": 8, "n_dense_tail": 1},
            "distributed": {"model_dtype": "fp32"},
        }  # fmt: skip
        for key, value in changes.items():
            assert not put(tree, key.replace("__", "."), value)
        return build(TrainConfig, tree)

    return make


@contextmanager
def pretended(shape):
    """Rank 0 of dp_replicate x dp_shard ranks whose collectives do nothing."""
    ranks = shape[0] * shape[1]
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp_replicate", "dp_shard"))
        yield World(0, 0, ranks, torch.device("cpu"), mesh=mesh)
    finally:
        dist.destroy_process_group()


def cpu_setting(config, ranks=1):
    return dataclasses.replace(setting_of(config, config.model, ranks), on_cpu=True, kernel=False, compiled=False)


class Measured:
    """An optimizer step of one rank as the trainer makes it, when the optimizer's state is there."""

    def __init__(self, config, ranks=1, prepare=lambda model: None):
        self.setting = cpu_setting(config, ranks)
        wrapped = self.setting.wrapped
        world = (
            pretended(config.distributed.mesh_shape(ranks))
            if wrapped
            else nullcontext(World(0, 0, 1, torch.device("cpu")))
        )
        # What no rank has to compute is not computed: shapes and storages alone, and no kernel.
        with world as rank, FakeTensorMode(allow_non_fake_inputs=True) if ranks > 1 else nullcontext():
            self.model = build_model(config.model, config.topk, "meta")
            parallelize(self.model, rank, config.distributed)
            self.model.to_empty(device="cpu")
            if ranks == 1:
                init_weights(self.model, config.model)
            prepare(self.model)
            optimizer = build_optimizer(self.model, config.optim)
            with LiveBytes(self.model.parameters()) as live:
                # What counts as the loss begins with the final norm: a block's forward pass can need more.
                self.model.norm.register_forward_pre_hook(lambda *_: self._note_peak(live))
                for parameter in self.model.parameters():
                    parameter.grad = torch.zeros_like(parameter)
                optimizer.step()
                optimizer.zero_grad()
                self.peak = self.loss = 0
                self._step(live, optimizer, config.model.vocab_size)
            self.state = sum(live.size(t) for each in optimizer.state.values() for t in each.values())
            self.weights = sum(map(live.size, self.model.parameters()))

    def _step(self, live, optimizer, vocab_size):
        n = self.setting.micro_batches
        for i in range(n):
            if self.setting.wrapped:
                self.model.set_requires_gradient_sync(i == n - 1)
            tokens = torch.zeros((self.setting.sequences, self.setting.seq_len), dtype=torch.int64)
            before = live.now
            loss = self.model(tokens, tokens.clone(), reduction="sum")
            self.loss = max(self.loss, live.take_peak())
            self.kept = live.now - before
            loss.backward()
            self._note_peak(live)
        self.peak = max(self.peak, self.loss)
        self.gradients = sum(live.size(p.grad) for p in self.model.parameters())
        optimizer.step()
        self._note_peak(live)
        optimizer.zero_grad()

    def _note_peak(self, live):
        self.peak = max(self.peak, live.take_peak())


@pytest.fixture
def measure():
    return Measured
