"""Scoring for lm-evaluation-harness: topklm against the harness's own HFLM with transformers, on one checkpoint.

    python scripts/bench_eval.py runs/quickstart/topk data/quickstart/tasks [--context 256 --device cuda --rounds 5]

Kinds of requests, made of the held-out text of make_local_tasks.py: `last word` (one answer of a word or so to a
passage), `pairs` (whole sentences without a prompt), `choices` (four endings of 8 to 24 words to one prompt of 40 to
80, HellaSwag's form), `letters` (four answers of a letter to one prompt, MMLU's form), `rolling` (whole documents).

Both sides get texts, so tokenizing counts. HFLM runs the exported checkpoint with each of its --hf-batch sizes; the
fastest counts. Prints the median of HFLM's time over ours, in alternating rounds of one process: above 1, ours is
faster.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from benchmarking import write_json
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

from topklm import load_model
from topklm.errors import TopklmError
from topklm.evaluate.harness import work_of
from topklm.evaluate.harness_marks import marks_for
from topklm.evaluate.harness_model import HarnessModel
from topklm.evaluate.harness_ranks import Crew
from topklm.evaluate.harness_scoring import Scorer
from topklm.export.huggingface import export_huggingface
from topklm.export.sides import open_huggingface
from topklm.export.source import open_source

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", help="run or checkpoint")
    parser.add_argument("tasks_dir", type=Path, help="what make_local_tasks.py made")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--requests", type=int, default=400, help="of each kind (rolling: documents of as many tokens)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--batch-tokens", type=int, help="ours; default by device")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time, for a machine that others use as well")
    parser.add_argument("--hf-batch", nargs="+", default=["8", "32", "128"])
    parser.add_argument("--out", type=Path, default=Path("bench_eval.json"))
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    model, tokenizer, loaded = load_model(args.ckpt, device=device, dtype=dtype)
    assert tokenizer is not None
    marks = marks_for(tokenizer, loaded.run)
    scorer = Scorer(model, device=device, batch_tokens=args.batch_tokens)
    ours = HarnessModel(
        tokenizer, Crew(work_of(model, tokenizer, scorer)), window=args.context, marks=marks, progress=unseen
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        exported = Path(directory) / "export"
        export_huggingface(open_source(args.ckpt), exported)
        side = open_huggingface(exported)
        side.to(dtype, device)
        peers = {
            size: HFLM(
                side.model, tokenizer=PreTrainedTokenizerFast.from_pretrained(exported), max_length=args.context,
                batch_size=size, max_batch_size=512, add_bos_token=marks.bos, prefix_token_id=marks.prefix_id,
            )
            for size in args.hf_batch
        }  # fmt: skip
    print(
        f"{args.ckpt}: {loaded.model.n_params / 1e6:.1f} M parameters, {args.dtype} on {device}, context {args.context}"
    )
    results = []
    for kind, (method, requests) in make_requests(args.tasks_dir, args.requests).items():
        times: dict[str, list[float]] = {"ours": [], **{size: [] for size in peers}}
        for round_ in range(args.rounds + 1):
            for name, lm in {"ours": ours, **peers}.items():
                began = clock()
                with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
                    getattr(lm, method)(requests)
                if round_:
                    times[name].append(clock() - began)
        best = min(peers, key=lambda size: statistics.median(times[size]))
        ratio = statistics.median(b / a for a, b in zip(times["ours"], times[best], strict=True))
        tokens = sum(len(span.tokens) - 1 for r in requests for span in ours.spans(r)[0])
        rate = tokens / statistics.median(times["ours"])
        print(
            f"  {kind:10s} {len(requests):5d} requests, {tokens:7d} tokens: ours {rate:9,.0f} tokens/s, "
            f"HFLM / ours {ratio:5.2f} (its batch size {best})"
        )
        results.append(
            {"kind": kind, "tokens": tokens, "tokens_per_second": rate, "hflm_over_ours": ratio, "hf_batch": best}
        )
    write_json(args.out, vars(args), results)


def make_requests(tasks_dir: Path, n: int) -> dict[str, tuple[str, list[Instance]]]:
    """By kind: the harness's method and its requests."""

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tasks_dir / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]

    def instances(pairs: list[tuple[str, ...]], kind: str = "loglikelihood") -> tuple[str, list[Instance]]:
        return kind, [Instance(kind, {}, pair, i) for i, pair in enumerate(pairs)]  # type: ignore[arg-type]

    words = " ".join(line["text"] for line in read("documents")).split()
    draw = random.Random(0)

    def stretch(least: int, most: int) -> str:
        start = draw.randrange(len(words) - most)
        return " ".join(words[start : start + draw.randint(least, most)])

    choices = [(prompt, f" {stretch(8, 24)}") for prompt in (stretch(40, 80) for _ in range(n // 4)) for _ in range(4)]
    letters = [(f"{prompt}\nAnswer:", f" {x}") for prompt in (stretch(40, 80) for _ in range(n // 4)) for x in "ABCD"]
    pairs = [("", line[side]) for line in read("minimal_pairs") for side in ("good", "bad")]
    return {
        "last word": instances([(line["passage"], f" {line['word']}") for line in read("last_word")][:n]),
        "pairs": instances(pairs[:n]),
        "choices": instances(choices),
        "letters": instances(letters),
        "rolling": instances(
            [(" ".join(words[i : i + 2000]),) for i in range(0, 50 * n, 2000)], "loglikelihood_rolling"
        ),
    }


@contextmanager
def unseen(description: str, total: int) -> Any:
    yield lambda done: None


if __name__ == "__main__":
    try:
        main()
    except TopklmError as error:
        print(f"bench_eval: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
