"""lm-evaluation-harness's view of a model: text requests to token spans, and their scores to answers.

Imports lm_eval; `harness.py` does so once it is known to be there.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from topklm.data import Tokenizer
from topklm.errors import ConfigError
from topklm.evaluate.harness_marks import Marks
from topklm.evaluate.harness_ranks import Crew
from topklm.evaluate.harness_scoring import Score, Span, cut
from topklm.generate import SamplingConfig

log = logging.getLogger("topklm.evaluate")

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(description, total) -> a context that takes how many more are done."""


class HarnessModel(TemplateLM):
    """Loglikelihoods, rolling loglikelihoods and generation by the ranks of `crew`, whose work has the names "score"
    (groups of spans to lists of scores) and "generate" (numbered prompts of ids to texts).

    lm_eval sees a single rank: dividing the requests is the crew's.
    """

    def __init__(
        self, tokenizer: Tokenizer, crew: Crew, *, window: int, marks: Marks, progress: Progress, seed: int = 0
    ):
        """`window`: tokens that the model may see at once. `seed`: of generation that samples."""
        super().__init__()
        self.tokenizer, self.crew, self.window, self.marks = tokenizer, crew, window, marks
        self.progress, self.seed = progress, seed
        # The answers to one question come one after the other, and share its context.
        self._ids = functools.lru_cache(maxsize=1024)(lambda text: tuple(tokenizer.encode(text)))

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.marks.prefix_id

    @property
    def max_length(self) -> int:
        return self.window

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer where the task does not say; the harness's number."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.sha256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a prompt; BOS by the policy, or as told."""
        ids = self._ids(string)
        bos = self.marks.bos if add_special_tokens is None else add_special_tokens
        return [self.tokenizer.bos_id, *ids] if bos and self.tokenizer.bos_id is not None else [*ids]

    def spans(self, instance: Instance) -> tuple[list[Span], int]:
        """(what is scored for a request, how many tokens of its prompt were cut off)."""
        if instance.request_type == "loglikelihood_rolling":
            return self._rolling_spans(*instance.args), 0
        context, continuation = self._pair(*instance.args)
        spans = cut(context, continuation, self.window)
        return spans, max(0, len(context) + len(continuation) - self.window - 1)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Score]:
        return self._scores([self.spans(request)[0] for request in requests], "loglikelihoods")

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        scores = self._scores([self.spans(request)[0] for request in requests], "rolling loglikelihoods")
        return [log_p for log_p, _ in scores]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[Score]:
        return self._scores([cut(context, answer, self.window) for _, context, answer in requests], "loglikelihoods")

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of context and continuation, encoded together and then divided, as the harness does it."""
        if context:
            context_ids, ids = self._encode_pair(context, continuation)
            # A context of nothing but spaces leaves no context; a tokenizer that joins both to no more tokens than the
            # context has leaves nothing to score.
            return context_ids or [self.prefix_token_id], ids or self.tok_encode(continuation, add_special_tokens=False)
        ids = self.tok_encode(continuation, add_special_tokens=False)
        if ids[:1] == [self.prefix_token_id]:
            return ids[:1], ids[1:]
        return [self.prefix_token_id], ids

    def _rolling_spans(self, text: str) -> list[Span]:
        """Windows that predict every token of a text once. BOS stands before it and is not itself predicted."""
        ids = self.tok_encode(text, add_special_tokens=False)
        windows = get_rolling_token_windows(ids, self.prefix_token_id, self.window, context_len=1)
        pairs = map(make_disjoint_window, windows)
        return [Span((*context, *predicted), len(predicted)) for context, predicted in pairs]

    def _scores(self, requests: Sequence[list[Span]], description: str) -> list[Score]:
        """One score per request: the sum over its spans."""
        by_context: dict[tuple[int, ...], list[tuple[int, Span]]] = {}
        for number, spans in enumerate(requests):
            for span in spans:
                by_context.setdefault(span.tokens[: -span.n_scored], []).append((number, span))
        # A group goes to one rank, which can share work between its spans; the largest first, so ranks get even parts.
        groups = sorted(by_context.values(), key=lambda group: -sum(len(span.tokens) for _, span in group))
        with self.progress(description, sum(map(len, groups))) as advance:
            answers = self.crew.share("score", [[span for _, span in group] for group in groups], advance=advance)
        results: list[Score] = [(0.0, True)] * len(requests)
        for group, scores in zip(groups, answers, strict=True):
            for (number, _), (log_p, greedy) in zip(group, scores, strict=True):
                total, all_greedy = results[number]
                results[number] = (total + log_p, all_greedy and greedy)
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        by_settings: dict[str, tuple[SamplingConfig, list[int]]] = {}
        for number, request in enumerate(requests):
            config = self._sampling(request)
            by_settings.setdefault(repr(config), (config, []))[1].append(number)
        texts = [""] * len(requests)
        for config, numbers in by_settings.values():
            prompts = []
            for number in numbers:
                ids = self.tok_encode(requests[number].args[0]) or [self.prefix_token_id]
                prompts.append((number, ids[-(self.window - config.max_tokens) :]))
            with self.progress("generating", len(prompts)) as advance:
                answers = self.crew.share("generate", prompts, (config, self.window), advance)
            for number, text in zip(numbers, answers, strict=True):
                texts[number] = text
        return texts

    def _sampling(self, request: Instance) -> SamplingConfig:
        """The harness's generation settings as ours. Raises `ConfigError` for what there is no equivalent of."""
        settings: dict[str, Any] = dict(normalize_gen_kwargs(request.args[1], self.max_gen_toks))
        n = settings.pop("max_gen_toks")
        if n >= self.window:
            raise ConfigError(
                f"task {request.task_name} generates up to {n} tokens: the context of {self.window} has no room for a "
                f"prompt; give harness.gen_kwargs={{max_gen_toks: {max(1, self.window // 2)}}}, or more context"
            )
        sampled = settings.pop("do_sample")
        temperature = settings.pop("temperature", 1.0)
        config = SamplingConfig(
            max_tokens=n,
            temperature=float(temperature) if sampled else 0.0,
            stop=[text for text in settings.pop("until", []) if text],
            top_k=settings.pop("top_k", None),
            top_p=settings.pop("top_p", None),
            min_p=settings.pop("min_p", None),
            seed=self.seed,
        )
        if settings:
            raise ConfigError(f"task {request.task_name}: there are no generation settings {', '.join(settings)} here")
        return config
