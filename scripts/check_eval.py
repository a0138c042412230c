"""Do topklm and transformers score a checkpoint alike? lm-evaluation-harness on both, request by request.

    python scripts/check_eval.py runs/quickstart/topk data/quickstart/tasks [--context 128] [--json FILE]

The checkpoint is exported for transformers and run by the harness's own `HFLM`; our side runs the checkpoint itself.
Same tasks, same BOS policy, same context (a small one cuts many prompts; HFLM fails on an answer longer than it). Every
log-likelihood must agree to 1e-4 nats and every score exactly: in fp64 without exception, in fp32 but for requests in
which a TopK selected other entries, 1 % of them at most.

TopK is discontinuous: where two entries are closer than rounding, both selections are right. Such a request is excused
only if transformers, told to select what topklm selects, gives topklm's value to 1e-4; it is listed with how close the
entries were. For fp64, transformers' norms and rotary tables, which it computes in fp32 whatever the dtype, are made
fp64 here.

Exit code 6: they do not agree.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from topklm import load_model
from topklm.errors import ConfigError, ParityError, TopklmError
from topklm.evaluate.harness import run_harness
from topklm.evaluate.harness_config import HarnessConfig
from topklm.evaluate.harness_marks import Marks, marks_for
from topklm.evaluate.tasks import LoadedTasks, load_tasks
from topklm.export.huggingface import export_huggingface
from topklm.export.sides import HuggingFaceSide, NativeSide, open_huggingface
from topklm.export.source import open_source

TOLERANCE = 1e-4
"""Nats per request; of a text that is scored in several windows, per window."""
FLIPS = 0.01
"""Share of the requests that may have selected otherwise, in fp32."""
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", help="run or checkpoint")
    parser.add_argument("tasks_dir", help="local tasks, such as those of make_local_tasks.py")
    parser.add_argument("--tasks", nargs="+", default=["last_word", "minimal_pairs", "documents"])
    parser.add_argument("--context", type=int, default=128, help="tokens of a request at most")
    parser.add_argument("--limit", type=int, help="documents of each task at most")
    parser.add_argument("--json", type=Path, help="file for all differences")
    args = parser.parse_args()
    config = HarnessConfig(tasks=args.tasks, limit=args.limit)
    tasks = load_tasks(config, args.tasks_dir)
    if tasks.failed:
        raise ConfigError(str(tasks.failed))
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        exported = Path(directory) / "export"
        export_huggingface(open_source(args.ckpt), exported)
        for precision in DTYPES:
            report[precision] = compare(args.ckpt, exported, precision, config, tasks, args.context)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    wrong = [f"{precision}: {line}" for precision, found in report.items() for line in show(precision, found)]
    if wrong:
        raise ParityError("topklm and transformers do not score alike:\n  - " + "\n  - ".join(wrong))


def compare(
    ckpt: str, exported: Path, precision: str, config: HarnessConfig, tasks: LoadedTasks, context: int
) -> dict[str, Any]:
    """By task: number of requests, largest difference, requests beyond the tolerance with their flips, scores."""
    model, tokenizer, loaded = load_model(ckpt, dtype=DTYPES[precision])
    assert tokenizer is not None
    marks = marks_for(tokenizer, loaded.run)
    ours = run_harness(model, tokenizer, config, context=context, marks=marks, tasks=tasks)
    side = open_huggingface(exported)
    side.to(DTYPES[precision], torch.device("cpu"))
    if precision == "fp64":
        make_fp64(side.model)
    theirs = run_peer(side.model, exported, config, tasks, marks, context)
    spans = spans_of(tokenizer, marks, context)
    report: dict[str, Any] = {}
    for task, samples in ours.samples.items():
        pairs = list(zip(requests(samples), requests(theirs["samples"][task]), strict=True))
        # A text in many windows is as many requests to the model, each of which may be off.
        differences = [abs(a[1] - b[1]) / len(spans(a[0])) for a, b in pairs]
        beyond = [pair for pair, difference in zip(pairs, differences, strict=True) if not difference <= TOLERANCE]
        excused = [excuse(NativeSide(model), side, spans(a[0]), a, b) for a, b in beyond]
        keys = [k for k in theirs["results"][task] if "," in k and "_stderr," not in k]
        report[task] = {
            "requests": len(pairs),
            "cut": ours.results["requests"][task]["cut"],
            "largest": max(differences),
            "greedy_differs": sum(a[2] != b[2] for a, b in pairs),
            "flips": [each for each in excused if each["is_flip"]],
            "unexplained": [each for each in excused if not each["is_flip"]],
            "scores": {k: (ours.results["results"][task][k], theirs["results"][task][k]) for k in keys},
        }
    return report


def run_peer(
    model: Any, exported: Path, config: HarnessConfig, tasks: LoadedTasks, marks: Marks, context: int
) -> dict[str, Any]:
    """The harness's own HFLM on the same tasks."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    class Peer(HFLM):
        def loglikelihood_rolling(self, *args: Any, **kwargs: Any) -> list[float]:
            # With add_bos_token it predicts the text's own BOS after the prefix, which is BOS already; we do not.
            self.add_bos_token, bos = False, self.add_bos_token
            try:
                return super().loglikelihood_rolling(*args, **kwargs)
            finally:
                self.add_bos_token = bos

    peer = Peer(
        model, tokenizer=PreTrainedTokenizerFast.from_pretrained(exported), max_length=context, batch_size=8,
        add_bos_token=marks.bos, prefix_token_id=marks.prefix_id,
    )  # fmt: skip
    every = {name: task for loaded in tasks.found.values() for name, task in loaded["tasks"].items()}
    return evaluate(peer, {"tasks": every}, limit=config.limit, bootstrap_iters=0)


Request = tuple[tuple[Any, ...], float, bool | None]
"""(its texts, log-likelihood, whether it is the greedy answer; None for a rolling one)."""


def requests(samples: list[dict[str, Any]]) -> list[Request]:
    """All requests of a task's log with their answers, in order."""
    found: list[Request] = []
    for sample in sorted(samples, key=lambda s: s["doc_id"]):
        for texts, answers in zip(sample["arguments"], sample["resps"], strict=True):
            answer = answers[0]
            found.append((texts, *answer) if isinstance(answer, tuple | list) else (texts, answer, None))
    return found


def spans_of(tokenizer: Any, marks: Marks, context: int) -> Any:
    """A function from a request's texts to what is scored for it."""
    from lm_eval.api.instance import Instance

    from topklm.evaluate.harness_model import HarnessModel

    lm = HarnessModel(tokenizer, None, window=context, marks=marks, progress=None)  # type: ignore[arg-type]
    kinds = {1: "loglikelihood_rolling", 2: "loglikelihood"}
    return lambda texts: lm.spans(Instance(kinds[len(texts)], {}, texts, 0))[0]  # type: ignore[arg-type]


def excuse(
    native: NativeSide, theirs: HuggingFaceSide, spans: list[Any], ours: Request, peer: Request
) -> dict[str, Any]:
    """Is a difference a flip? Both sides run the request alone, theirs once more with our selection."""
    alone, theirs_alone, told, gap = 0.0, 0.0, 0.0, float("inf")
    for span in spans:
        tokens = torch.tensor([span.tokens[:-1]])
        first, free = native.trace(tokens), theirs.trace(tokens)
        forced = theirs.trace(tokens, first.selected) if first.streams else free
        alone, theirs_alone, told = (
            total + log_likelihood(trace.logits[0], span)
            for total, trace in ((alone, first), (theirs_alone, free), (told, forced))
        )
        for x, chosen in zip(first.streams, first.selected, strict=True):
            kept = x.masked_fill(~chosen, float("inf")).amin(-1)
            gap = min(gap, (kept - x.masked_fill(chosen, float("-inf")).amax(-1)).min().item())
    # The same function given the same selection; and another selection, of one side or of another batch of one side.
    is_same = abs(alone - told) <= TOLERANCE * max(1, len(spans))
    moved = max(abs(theirs_alone - told), abs(ours[1] - alone), abs(peer[1] - theirs_alone)) > TOLERANCE / 2
    return {
        "request": [str(text)[-80:] for text in ours[0]], "ours": ours[1], "theirs": peer[1], "ours_alone": alone,
        "theirs_alone": theirs_alone, "theirs_told": told, "smallest_gap": gap, "is_flip": is_same and moved,
    }  # fmt: skip


def log_likelihood(logits: Tensor, span: Any) -> float:
    log_p = logits.double().log_softmax(-1)[-span.n_scored :]
    return log_p.gather(-1, torch.tensor(span.tokens[-span.n_scored :])[:, None]).sum().item()


def make_fp64(model: Any) -> None:
    """Compute norms and rotary tables of a transformers Llama in its own dtype, fp64."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

    def norm(self: Any, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        width = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
        theta = getattr(self.config, "rope_theta", None) or self.config.rope_parameters["rope_theta"]
        frequencies = 1.0 / theta ** (torch.arange(0, width, 2, dtype=x.dtype, device=x.device) / width)
        angles = position_ids[..., None].to(x.dtype) * frequencies
        both = torch.cat((angles, angles), -1)
        return both.cos(), both.sin()

    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = MethodType(norm, module)
        elif isinstance(module, LlamaRotaryEmbedding):
            module.forward = MethodType(rotary, module)


def show(precision: str, report: dict[str, Any]) -> list[str]:
    """Print a table; what is wrong."""
    wrong = []
    for task, found in report.items():
        n, flips, unexplained = found["requests"], found["flips"], found["unexplained"]
        print(
            f"{precision}  {task:15s} {n:6d} requests, {found['cut']} cut, largest difference {found['largest']:.2e}, "
            f"{len(flips)} flips, {len(unexplained)} unexplained"
        )
        for flip in flips:
            print(f"      flip: {flip['ours']:.6f} and {flip['theirs']:.6f}, entries {flip['smallest_gap']:.1e} apart")
        for each in unexplained:
            wrong.append(f"{task}: {each['ours']:.6f} and {each['theirs']:.6f} for {each['request']}")
        allowed = FLIPS * n if precision == "fp32" else 0
        if len(flips) > allowed:
            wrong.append(f"{task}: {len(flips)} of {n} requests selected otherwise, more than {allowed:g}")
        for key, (ours, theirs) in found["scores"].items():
            if not flips and abs(ours - theirs) > 1e-4 * max(1.0, abs(theirs)):
                wrong.append(f"{task}: {key} is {ours} and {theirs}")
            print(f"      {key}: {ours} | {theirs}")
        if found["greedy_differs"] > len(flips):
            wrong.append(f"{task}: {found['greedy_differs']} requests differ in what is greedy")
    return wrong


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        main()
    except TopklmError as error:
        print(f"check_eval: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
