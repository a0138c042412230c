"""A store with a model of two layers that trains and saves on demand."""

import torch

from topklm.checkpoint import CheckpointConfig, CheckpointStore


def make(tmp_path, **config):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    (tmp_path / "tokenizer").mkdir(exist_ok=True)
    (tmp_path / "tokenizer" / "t.model").write_bytes(b"pieces")
    store = CheckpointStore(tmp_path / "checkpoints", CheckpointConfig(**config), 0, None)

    def train_and_save(step):
        model(torch.randn(3, 4, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        store.save(step, model, optimizer, {"step": step}, {"name": "x"}, tmp_path / "tokenizer")

    return store, model, optimizer, train_and_save
