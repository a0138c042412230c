"""Evaluations of models that were never trained, written as real ones are."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from topklm.evaluate import evaluation_provenance, write_results

CONFIG: dict[str, Any] = {
    "name": "dense", "steps": 10, "seed": 1, "model": {"dim": 64, "n_layers": 4}, "optim": {"lr": 1e-3},
    "data": {"root_dir": "d", "sources": {"s": 1.0}, "seq_len": 8}, "distributed": {"model_dtype": "fp32"},
}  # fmt: skip
TOPK = {"activation": "topk", "k": 8, "n_dense_tail": 1}


def provenance(name="dense", topk=None, *, step=10, alpha=None, tokenizer="t" * 64, context=256, **config):
    run = {**CONFIG, "name": name, "topk": topk, **config}
    return evaluation_provenance(
        run, step=step, alpha=alpha, tokenizer_sha256=tokenizer, context=context, bos="BOS", seed=1,
        device="cpu", dtype=torch.float32, checkpoint_sha256=f"{name:c<64}", data_fingerprint="d" * 64,
    )  # fmt: skip


def harness(scores, *, chance=0.5, near=(), task="pick", n_all=None, metric="acc"):
    """(results, samples) of one task; `scores` per document."""
    n, mean = len(scores), sum(scores) / len(scores)
    error = (sum((s - mean) ** 2 for s in scores) / (n - 1) / n) ** 0.5
    results = {
        "results": {task: {"name": task, "alias": task, "sample_len": n, f"{metric},none": mean,
                           f"{metric}_stderr,none": error}},
        "configs": {task: {"output_type": "multiple_choice"}}, "versions": {task: 1.0}, "n-shot": {task: 0},
        "higher_is_better": {task: {metric: True}}, "n-samples": {task: {"original": n_all or n, "effective": n}},
        "chance": {task: chance}, "near_chance": {task: list(near)},
    }  # fmt: skip
    samples = [
        {"doc_id": i, "doc_hash": f"d{i}", "prompt_hash": f"p{i}", "target_hash": f"t{i}", "filter": "none",
         "metrics": [metric], metric: score, "resps": [[[-1.0, True]]]}
        for i, score in enumerate(scores)
    ]  # fmt: skip
    return results, {task: samples}


@dataclass
class FakeValidation:
    """What `write_results` needs of a `Validation`: documents of `sizes` tokens with a loss per token each."""

    losses: list[float]
    sizes: list[int]
    fingerprint: str = "f" * 64
    view: str = "256"

    def lines(self):
        return [
            {"source": "s", "document": i, "hash": f"h{i}", "tokens": n, "bytes": 4 * n, "nats": loss * n,
             "text_nats": 0.9 * loss * n}
            for i, (loss, n) in enumerate(zip(self.losses, self.sizes, strict=True))
        ]  # fmt: skip

    def content(self):
        nats, tokens = (sum(line[key] for line in self.lines()) for key in ("nats", "tokens"))
        row = {"loss": nats / tokens, "ppl": math.exp(nats / tokens), "ppl_stderr": 1.0,
               "tokens": tokens, "bpb": 0.9 * nats / math.log(2) / (4 * tokens), "bpb_stderr": 0.01,
               "documents": len(self.sizes)}  # fmt: skip
        return {
            "figures": {f"val/ppl@{self.view}": row["ppl"]},
            "held_out": {"fingerprint": self.fingerprint},
            "views": {self.view: {"windows": {}, "sources": {"*": row}}},
        }

    def logs(self):
        return {self.view: self.lines()}


def write(root, name, found, *, scores=None, validation=None, **task):
    """An evaluation in root/name/evals/STEP; returns root/name."""
    results, samples = (None, None) if scores is None else harness(scores, **task)
    write_results(
        root / name / "evals" / f"{found['step']:010d}", provenance=found, harness=results, samples=samples,
        validation=validation,
    )  # fmt: skip
    return root / name
