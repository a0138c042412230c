"""One completion while it is made."""

from __future__ import annotations

from topklm.data import Tokenizer
from topklm.generate.completion import Completion, FinishReason, Piece
from topklm.generate.config import SamplingConfig
from topklm.generate.text import StopScanner, TokenText


class Row:
    """Takes the tokens of one (prompt, sample), makes text of them and says when it is finished."""

    def __init__(
        self,
        prompt: int,
        sample: int,
        prompt_ids: list[int],
        context: int,
        config: SamplingConfig,
        tokenizer: Tokenizer | None,
    ):
        self.prompt, self.sample, self.prompt_ids = prompt, sample, prompt_ids
        self.room = min(config.max_tokens, context - len(prompt_ids))
        self.finish_reason: FinishReason | None = None
        self._at_end: FinishReason = "length" if self.room == config.max_tokens else "context"
        self._eos = tokenizer.eos_id if tokenizer is not None and config.stop_at_eos else None
        self._tokens = None if tokenizer is None else TokenText(tokenizer, prompt_ids)
        self._scanner = StopScanner(config.stop)
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._text: list[str] = []

    def push(self, token: int, logprob: float) -> Piece:
        """Add a token; the text that is certain now."""
        self._ids.append(token)
        self._logprobs.append(logprob)
        text = "" if self._tokens is None else self._scanner.push(self._tokens.push([token]))
        if self._scanner.stopped:
            self.finish_reason = "stop"
        elif token == self._eos:
            self.finish_reason = "eos"
        elif len(self._ids) == self.room:
            self.finish_reason = self._at_end
        if self.finish_reason is not None and not self._scanner.stopped and self._tokens is not None:
            text += self._scanner.push(self._tokens.rest())
            text += self._scanner.rest()
            if self._scanner.stopped:  # in what had been held back as half a character
                self.finish_reason = "stop"
        self._text.append(text)
        return Piece(prompt=self.prompt, sample=self.sample, text=text, finish_reason=self.finish_reason)

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        return Completion(
            prompt_ids=self.prompt_ids,
            ids=self._ids,
            text="".join(self._text),
            logprobs=self._logprobs,
            finish_reason=self.finish_reason,
        )
