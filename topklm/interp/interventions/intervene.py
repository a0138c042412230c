"""`intervene`: a model that is changed inside a `with`, and as it was after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from topklm.errors import ConfigError
from topklm.interp.interventions.intervention import Intervention
from topklm.interp.interventions.plan import Plan
from topklm.interp.interventions.seams import PLAN, check_reachable, intervened_class, stack_of


@contextmanager
def intervene(
    model: nn.Module, interventions: Sequence[Intervention], *, prompt_lengths: int | Sequence[int] | None = None
) -> Iterator[nn.Module]:
    """Every forward pass of `model` inside the `with` is changed; gives the model.

    The native model, one with Lingua's blocks, or one of transformers (sparsified, exported or dense); any alpha, with
    and without cache and gradients. In each layer those of site "pre" act in their order, then the activation, then
    those of site "post". An inner `intervene` adds to an outer one, after it. Recomputation in the backward pass
    (gradient checkpointing) has to happen inside as well. Compiled code of this process runs eagerly inside, since a
    compiled graph knows nothing of the change; what was compiled is used again afterwards.

    `prompt_lengths`: tokens of each row's prompt, one for all or one per row, for the positions "prompt" and
    "generated" (and "last") in forward passes of one's own; `topklm.generate` tells them itself.

    Raises `ConfigError` with all problems before anything is changed, and in a forward pass whose positions or rows
    do not fit.
    """
    stack = stack_of(model)
    problems = [
        problem.under(f"interventions[{i}]") for i, one in enumerate(interventions) for problem in one.problems(model)
    ]
    if problems:
        raise ConfigError(problems)
    lengths = None if prompt_lengths is None else _lengths(prompt_lengths)
    here: dict[int, list[tuple[Intervention, Tensor | None]]] = {}
    for one in interventions:
        for layer in one.in_layers(len(stack.blocks)):
            here.setdefault(layer, []).append((one, lengths))
    for layer in here:
        check_reachable(stack.blocks[layer], layer)
    with _eagerly():
        before = [(stack.blocks[layer], type(stack.blocks[layer])) for layer in here]
        outer = [block.__dict__.get(PLAN) for block, _ in before]
        try:
            for (block, cls), plan, mine in zip(before, outer, here.values(), strict=True):
                block.__dict__[PLAN] = Plan((*(() if plan is None else plan.interventions), *mine))
                if plan is None:
                    block.__class__ = intervened_class(cls)  # type: ignore[arg-type]
            yield model
        finally:
            for (block, cls), plan in zip(before, outer, strict=True):
                block.__class__ = cls
                if plan is None:
                    block.__dict__.pop(PLAN, None)
                else:
                    block.__dict__[PLAN] = plan


def _lengths(given: int | Sequence[int]) -> Tensor:
    numbers = [given] if isinstance(given, int) else list(given)
    if not numbers or any(type(n) is not int or n < 0 for n in numbers):
        raise ConfigError(f"prompt_lengths {given!r} are not whole numbers of at least 0")
    return torch.tensor(numbers)


def _eagerly() -> AbstractContextManager[object]:
    """Without the compiler where anything could have been compiled: importing it takes seconds."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
