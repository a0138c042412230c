"""Texts of a steered model, and how probable each is under the model as it is."""

from __future__ import annotations

import torch

from topklm.data import Tokenizer
from topklm.generate import Completion, SamplingConfig, generate
from topklm.interp.interventions import Intervention, intervene
from topklm.interp.neurons import Neuron
from topklm.interp.steering.samples import Sample
from topklm.model import Transformer
from topklm.model.scoring import score_tokens


class Writer:
    """Makes the texts of a cell: `sampling.n_samples` continuations of one prompt with one neuron steered.

    Text n of every cell is drawn with the same random numbers, those of (seed, n) (`topklm.generate`).
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        prompt: str,
        sampling: SamplingConfig,
        *,
        bos: bool,
        batch_size: int,
        context: int | None = None,
    ) -> None:
        self._model, self._tokenizer, self._prompt, self._sampling = model, tokenizer, prompt, sampling
        self._bos, self._batch_size, self._context = bos, batch_size, context

    def write(self, neuron: Neuron | None, offset: float) -> list[Sample]:
        """Texts with `offset` added to the neuron's pre-activation at every position of prompt and text; None: none."""
        steering = [] if neuron is None else [steer(neuron, offset)]
        with intervene(self._model, steering):
            ((*made,),) = generate(
                self._model, self._tokenizer, [self._prompt], self._sampling,
                batch_size=self._batch_size, context=self._context, bos=self._bos,
            )  # fmt: skip
        kept = [_without_eos(completion) for completion in made]
        losses = text_losses(self._model, made[0].prompt_ids, kept, self._batch_size)
        return [
            Sample(
                neuron=neuron, offset=offset, sample=i, text=completion.text, ids=ids, nll=nll,
                finish_reason=completion.finish_reason,
            )
            for i, (completion, ids, nll) in enumerate(zip(made, kept, losses, strict=True))
        ]  # fmt: skip


def steer(neuron: Neuron, offset: float) -> Intervention:
    """The paper's steering: a constant added to what enters the TopK, at every position (section 4, Table 2)."""
    return Intervention(layer=neuron.layer, neurons=[neuron.index], site="pre", op="add", value=offset)


def text_losses(model: Transformer, prompt_ids: list[int], texts: list[list[int]], batch_size: int) -> list[float]:
    """-ln p of each text's tokens after the prompt under `model`, in nats, summed in float64; 0 of an empty text."""
    device = model.head_weight.device
    losses = [0.0] * len(texts)
    todo = [i for i, ids in enumerate(texts) if ids]
    for start in range(0, len(todo), batch_size):
        rows = todo[start : start + batch_size]
        width = len(prompt_ids) + max(len(texts[i]) for i in rows) - 1  # the last token predicts nothing
        tokens = torch.zeros(len(rows), width, dtype=torch.int64)
        positions: list[int] = []
        for row, i in enumerate(rows):
            ids = (prompt_ids + texts[i])[:-1]
            tokens[row, : len(ids)] = torch.tensor(ids)
            positions += range(row * width + len(prompt_ids) - 1, row * width + len(ids))
        targets = torch.tensor([token for i in rows for token in texts[i]])
        log_p, _ = score_tokens(
            model, tokens.to(device), torch.tensor(positions, device=device), [1] * len(positions), targets.to(device)
        )
        by_text = log_p.double().cpu().split([len(texts[i]) for i in rows])
        for i, each in zip(rows, by_text, strict=True):
            losses[i] = -float(each.sum())
    return losses


def _without_eos(completion: Completion) -> list[int]:
    return completion.ids[:-1] if completion.finish_reason == "eos" else completion.ids
