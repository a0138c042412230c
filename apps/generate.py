"""Continue texts with a trained model: `python -m apps.generate ckpt=runs/quickstart/topk prompt="My fellow citizens"`

Text is printed as soon as it is certain. Many prompts (a list, a file, standard input) and many samples of each are
decoded in batches; out=FILE.json keeps them with ids, log-probabilities and what made them. See docs/generate.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.generate ckpt=PATH prompt=TEXT")

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from apps._program import Dtype, run, torch_device, torch_dtype
from topklm.config import Verbatim
from topklm.errors import CheckpointError, Problem
from topklm.generate import Completion, SamplingConfig

log = logging.getLogger("topklm.generate")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingConfig):
    """What is continued, by which model, and how."""

    unused_keys: ClassVar[dict[str, str]] = {
        "max_prompt_len": "prompts are never cut; one that does not fit the context is an error",
        "compile_prefilling": "nothing is compiled",
        "reduce_generation_overhead": "nothing is compiled",
        "show_progress": "there is a bar where text is not shown while it is made",
    }

    ckpt: str = ""
    """A run's dump_dir, a checkpoint directory, or a consolidated file."""
    prompt: Verbatim | None = None
    """One prompt, as it stands after `prompt=`, or one of prompts and prompts_file. Empty: from nothing but BOS."""
    prompts: list[str] = field(default_factory=list)
    """Several prompts."""
    prompts_file: Verbatim | None = None
    """A file with one prompt a line, or JSON Lines of texts or {"prompt": text}; "-" reads lines of standard input."""
    max_gen_len: int | None = None
    """Meta Lingua's name of max_tokens."""
    until: list[str] = field(default_factory=list)
    """Meta Lingua's name of stop."""
    bos: bool | None = None
    """Whether prompts begin with the BOS token; null: as the texts of the model's training did."""
    context: int | None = None
    """Tokens of prompt and completion together; null: the model's max_seqlen."""
    alpha: float | None = None
    """1 dense ... 0 TopK; null: the checkpoint's own."""
    batch_size: int = 16
    """Sequences that are decoded together."""
    device: str = "auto"
    """Where it runs: cpu, cuda, cuda:1; auto: a GPU if there is one."""
    dtype: Dtype = "fp32"
    """Precision of weights, computation and cache."""
    sparse_projections: Literal["auto", "always", "never"] = "auto"
    """Whether a block behind a TopK reads only the entries that are not zero: the same text to rounding. auto: where it
    is faster by measurement; always: wherever it can be done; never: nowhere."""
    show: Literal["live", "end", "none"] = "live"
    """Whether completions are printed while they are made, when all are finished, or not at all."""
    echo: bool = True
    """Whether prompts are printed before their completions."""
    out: str | None = None
    """A JSON file for prompts, completions, ids, log-probabilities and provenance."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if not self.ckpt:
            yield Problem("ckpt", "is missing: a run's dump_dir, a checkpoint or a consolidated file")
        given = (self.prompt is not None) + bool(self.prompts) + (self.prompts_file is not None)
        if given != 1:
            yield Problem("prompt", f"give one of prompt, prompts and prompts_file, not {given or 'none'}")
        if self.max_gen_len is not None:
            if self.max_gen_len < 1:
                yield Problem("max_gen_len", f"{self.max_gen_len} is below 1")
            if self.max_tokens != SamplingConfig.max_tokens:
                yield Problem("max_tokens", "is max_gen_len here (in Meta Lingua the size of its cache); give one only")
        if self.stop and self.until:
            yield Problem("until", "is stop here; give one only")
        if "" in self.until:
            yield Problem("until", "holds an empty text, before which everything would end")
        for name in ("batch_size", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield Problem(name, f"{value} is below 1")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            yield Problem("alpha", f"{self.alpha} is not in [0, 1]")
        if self.show == "none" and self.out is None:
            yield Problem("out", "is null and show is none: nothing would come out")

    @property
    def sampling(self) -> SamplingConfig:
        """The settings of `generate`, Meta Lingua's names translated."""
        values = {f.name: getattr(self, f.name) for f in fields(SamplingConfig)}
        return SamplingConfig(
            **{**values, "max_tokens": self.max_gen_len or self.max_tokens, "stop": self.until or self.stop}
        )


def main(config: GenerateConfig) -> None:
    import torch

    from topklm import load_model
    from topklm.evaluate.harness_marks import marks_for
    from topklm.generate import generate
    from topklm.generate.prompts import read_prompts
    from topklm.generate.record import write_completions
    from topklm.generate.terminal import TerminalStream

    prompts = config.prompts or [config.prompt or ""]
    if config.prompts_file is not None:
        prompts = read_prompts(config.prompts_file)
    device = torch_device(config.device)
    model, tokenizer, loaded = load_model(config.ckpt, device, torch_dtype(config.dtype), config.alpha)
    if tokenizer is None:
        raise CheckpointError(f"{loaded.path} has no tokenizer beside it, and text needs one; copy it there")
    marks = marks_for(tokenizer, loaded.run, config.bos, loaded.path)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    terminal = TerminalStream(sys.stdout, len(prompts), config.n_samples, prompts if config.echo else None)
    began = time.monotonic()
    results = generate(
        model, tokenizer, prompts, config.sampling, batch_size=config.batch_size, context=config.context, bos=marks.bos,
        stream=terminal if config.show == "live" else None, progress=config.show != "live",
        sparse_projections=config.sparse_projections,
    )  # fmt: skip
    seconds = time.monotonic() - began
    if config.show == "end":
        terminal.show_all(results)
    report(results, seconds, (loaded.run.get("data") or {}).get("seq_len") or loaded.model.max_seqlen)
    if config.out is not None:
        provenance = {
            "checkpoint": {"path": str(loaded.path), "step": loaded.step, "sha256": loaded.sha256},
            "tokenizer": tokenizer.meta(),
            "topk": None if loaded.topk is None else asdict(loaded.topk),
            "alpha": loaded.alpha,
            "sampling": asdict(config.sampling),
            "bos": marks.words,
            "context": config.context or loaded.model.max_seqlen,
            "batch_size": config.batch_size,
            "device": str(device),
            "dtype": config.dtype,
            "sparse_projections": config.sparse_projections,
            "torch": torch.__version__,
            "seconds": round(seconds, 3),
        }
        write_completions(Path(config.out), prompts, results, provenance)
        log.info("written: %s", config.out)


def report(results: list[list[Completion]], seconds: float, trained_length: int) -> None:
    completions = [completion for samples in results for completion in samples]
    ended: dict[str, Any] = {}
    for completion in completions:
        ended[completion.finish_reason] = ended.get(completion.finish_reason, 0) + 1
    tokens = sum(len(completion.ids) for completion in completions)
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(ended.items()))
    log.info("%d completions (%s), %d tokens, %.0f tokens/s", len(completions), reasons, tokens, tokens / seconds)
    longest = max(len(completion.prompt_ids) + len(completion.ids) for completion in completions)
    if longest > trained_length:
        log.warning("up to %d tokens in a text: more than the %d of the model's training", longest, trained_length)


if __name__ == "__main__":
    run(main, GenerateConfig, "generate", __doc__ or "")
