"""Completions on a terminal while they grow: one after the other, each with its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from topklm.generate.completion import Completion, Piece


class TerminalStream:
    """A `Stream` that writes to `out`. Of sequences that are made together, the first one unfinished is shown live and
    the text of the others waits for its turn. `prompts`: texts to show before their completions; None shows none.
    """

    def __init__(self, out: TextIO, n_prompts: int, n_samples: int, prompts: Sequence[str] | None = None):
        self._out, self._prompts = out, prompts
        self._turns = [(p, s) for p in range(n_prompts) for s in range(n_samples)]
        self._titled = len(self._turns) > 1
        self._n_samples = n_samples
        self._waiting: dict[tuple[int, int], list[Piece]] = {}
        self._open = False
        # Control characters that a model makes must not steer a terminal.
        controls = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)
        self._safe = controls if out.isatty() else {}

    def __call__(self, piece: Piece) -> None:
        self._waiting.setdefault((piece.prompt, piece.sample), []).append(piece)
        while self._turns and (pieces := self._waiting.pop(self._turns[0], [])):
            self._show(pieces)
            if pieces[-1].finish_reason is None:
                break
            self._turns.pop(0)
            self._open = False
        self._out.flush()

    def show_all(self, results: list[list[Completion]]) -> None:
        """Show completions that were made without the stream."""
        for prompt, samples in enumerate(results):
            for sample, made in enumerate(samples):
                self(Piece(prompt=prompt, sample=sample, text=made.text, finish_reason=made.finish_reason))

    def _show(self, pieces: list[Piece]) -> None:
        prompt, sample = self._turns[0]
        if not self._open:
            self._open = True
            if self._titled:
                of = f", sample {sample + 1}" if self._n_samples > 1 else ""
                self._out.write(f"--- prompt {prompt + 1}{of}\n")
            if self._prompts is not None:
                self._write(self._prompts[prompt])
        for piece in pieces:
            self._write(piece.text)
        if pieces[-1].finish_reason is not None:
            self._out.write("\n")

    def _write(self, text: str) -> None:
        self._out.write(text.translate(self._safe))
