"""Non-finite numbers put into a training run on purpose: at chosen steps, on one rank, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor

from topklm.data import loader
from topklm.model import transformer
from topklm.train import trainer

PLACES = ("loss", "activation", "gradient", "weight", "spike")
"""A spike is a loss that is finite and too high by 5 nats a token; its gradient is the loss's own."""
LAYER = {"activation": 2, "gradient": 1, "weight": 0}


@dataclass
class Poison:
    """`where` is one of `PLACES`; `steps` are counted from 0. The step's batch is what is poisonous, whenever it is
    computed, unless `once`: then it is so the first time only, as an error of a device would be."""

    where: str
    steps: set[int]
    rank: int = 0
    once: bool = False
    active: bool = False
    marked: dict[tuple[int, ...], bool] = field(default_factory=dict)

    def install(self, setattr=setattr):
        read, forward = loader._Reader.read, transformer.Transformer.forward
        build, train_step = trainer.build_model, trainer.Trainer._train_step

        def marking_read(reader, step):
            batches = read(reader, step)
            if step in self.steps and reader.rank == self.rank:
                for batch in batches.micro_batches if self.where == "spike" else batches.micro_batches[-1:]:
                    self.marked.setdefault(tuple(batch.tokens[0].tolist()), True)
            return batches

        def poisoned_forward(model, tokens, *args, **kwargs):
            key = tuple(tokens[0].tolist())
            self.active = self.marked.get(key, False) and model.training and torch.is_grad_enabled()
            if self.active and self.once:
                self.marked[key] = False
            loss = forward(model, tokens, *args, **kwargs)
            more = {"loss": torch.nan, "spike": 5.0 * tokens.numel()}.get(self.where, 0.0)
            return loss + more if self.active else loss

        def marked_model(*args):
            model = build(*args)
            if self.where in ("activation", "gradient"):
                kind = type(self.where, (_Poisoned,), {"poison": self})
                model.layers[LAYER[self.where]].attention.wo.__class__ = kind
            return model

        def poisoned_step(run, batches):
            if self.where == "weight" and run.step in self.steps and run.world.rank == self.rank:
                weight = run.model.layers[LAYER["weight"]].get_parameter(_inner(run, "attention.wo.weight")).detach()
                (weight.to_local() if isinstance(weight, DTensor) else weight).view(-1)[0] = torch.nan
            return train_step(run, batches)

        setattr(loader._Reader, "read", marking_read)
        setattr(transformer.Transformer, "forward", poisoned_forward)
        setattr(trainer, "build_model", marked_model)
        setattr(trainer.Trainer, "_train_step", poisoned_step)


def _inner(run, name):
    wrapped = run.config.distributed.checkpointing != "none"
    return f"_checkpoint_wrapped_module.{name}" if wrapped else name


class _Poisoned(nn.Linear):
    """A linear map with one NaN in its output, or in the gradient of its weight."""

    poison: Poison

    def forward(self, x):
        if not self.poison.active:
            return F.linear(x, self.weight)
        if self.poison.where == "gradient":
            return F.linear(x, _PoisonGradient.apply(self.weight))
        out = F.linear(x, self.weight)
        spot = torch.zeros_like(out)
        spot[0, 3, 0] = torch.nan
        return out + spot


class _PoisonGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient.view(-1)[0] = torch.inf
        return gradient
