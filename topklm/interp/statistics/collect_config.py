"""The configuration of `apps.collect`: whose activations, on which tokens, and what is kept of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from topklm.bundles import Settings
from topklm.errors import Problem
from topklm.interp.statistics.reading import ReadTopK

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def token_count(text: int | str) -> int | None:
    """A number of tokens as people write it: 10M, 1.5k, 2e6, 100_000. None if it is none."""
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?(?:e\d+)?)([kmb]?)", str(text).strip().lower())
    return None if match is None else round(float(match[1].replace("_", "")) * _UNITS[match[2]])


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """One pass over a corpus for each checkpoint."""

    ckpt: str = ""
    """A run (its newest good checkpoint), a checkpoint directory, a consolidated file, or a Hugging Face Llama."""
    ckpts: str | list[int] = "newest"
    """Which checkpoints of the run: newest; all; or a list of steps. One bundle each."""
    data: str | None = None
    """Directory of the prepared sources; null: what the run was trained on."""
    sources: list[str] = field(default_factory=list)
    """The sources in it; all if empty, or those of the run where data is null."""
    split: Literal["val", "train", "all"] = "val"
    """val: held-out text; train: what the sources train on; all: both."""
    tokens: int | str = "10M"
    """At most so many tokens (10M, 500k, 2e6), in whole windows spaced evenly over each source; all if fewer."""
    context: int | None = None
    """Tokens in a window; null: the run's data.seq_len."""
    snapshots: list[int | str] | None = None
    """Corpus sizes in tokens at which the statistics can be had apart, beside the whole. null: 1/64, 1/16 and 1/4 of
    it for one checkpoint, none for several. []: none."""
    halves: bool | None = None
    """Keep the statistics of two halves (every other window) apart as well; null: for one checkpoint."""
    init: Literal["checkpoint", "random"] = "checkpoint"
    """random: the initial weights of the checkpoint's configuration instead of its own: a control."""
    alpha: float | None = None
    """1 dense ... 0 TopK; null: the checkpoint's own. 0 for pure TopK while a run is annealing."""
    site: Literal["post", "pre"] = "post"
    """post: the blocks' outputs, as they are in the residual stream; pre: what enters the activation."""
    read_topk: ReadTopK | None = None
    """Read a dense model through ReLU and top-k, in the statistics only: a control."""
    layers: list[int] | None = None
    """Only these layers, counted from 0; null: all."""
    positive_part: bool = False
    """In layers with negative activations, a second table per token type: the sum of the positive part."""
    token_fired: bool = False
    """A further table: how often each neuron fired on each token type."""
    near_miss: float = 0.05
    """A near miss: not selected, and less than this times |cut| below the cut."""
    top_contexts: int = 16
    """Contexts with the largest activations, kept per neuron."""
    sample_contexts: int = 4
    """Contexts sampled per neuron and power of two of the activation."""
    check_selections: bool = True
    """Report in how many tokens of one batch a TopK layer selects otherwise one window at a time, and in fp32."""
    batch_size: int | None = None
    """Windows in a forward pass, per rank; null: about 2,048 tokens on a CPU, 32,768 on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU of its own for each rank, where there is one."""
    dtype: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Dtype of weights and compute. Sums are float64 whatever it is."""
    memory_gb: float | None = None
    """Memory for the tables, per rank. Where they need more, the corpus is gone through several times, some layers each
    time. null: half of what is free."""
    save_minutes: float = 10.0
    """Write the state of the pass this often (less often where writing takes long); started again after an
    interruption, it goes on from there. 0: after every batch."""
    out: str | None = None
    """The bundle's directory, with several checkpoints that of all their bundles; null: bundles/STEP of the run."""
    overwrite: bool = False
    """Replace a bundle that is there with other settings, and an unfinished collection with other settings."""
    timeout_minutes: float = 120.0
    """Under torchrun, how long a rank waits for another."""

    @property
    def several(self) -> bool:
        """Whether it names more than one checkpoint."""
        return self.ckpts != "newest"

    @property
    def settings(self) -> Settings:
        """As the bundle records them."""
        return Settings(
            near_miss=self.near_miss,
            top_contexts=self.top_contexts,
            sample_contexts=self.sample_contexts,
            positive_part=self.positive_part,
            token_fired=self.token_fired,
        )

    def problems(self) -> Iterator[Problem]:
        if not self.ckpt:
            yield Problem("ckpt", "is missing: a run or a checkpoint")
        if isinstance(self.ckpts, str) and self.ckpts not in ("newest", "all"):
            yield Problem("ckpts", f"{self.ckpts!r} is not newest, all or a list of steps")
        for key, value in (("tokens", self.tokens), *(("snapshots", n) for n in self.snapshots or [])):
            if not token_count(value):
                yield Problem(key, f"{value!r} is not a number of tokens above 0, such as 10M, 500k or 2e6")
        for key in ("context", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                yield Problem(key, f"{value} is below 1")
        for key in ("top_contexts", "sample_contexts"):
            if getattr(self, key) < 1:
                yield Problem(key, f"{getattr(self, key)} is below 1")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            yield Problem("alpha", f"{self.alpha} is not in [0, 1]: 1 dense ... 0 TopK")
        if not 0 <= self.near_miss < 1:
            yield Problem("near_miss", f"{self.near_miss} is not in [0, 1)")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            yield Problem("layers", f"{self.layers}: give layers counted from 0, or null for all")
        if self.read_topk is not None and self.site == "pre":
            yield Problem("site", "pre has no meaning with read_topk; leave out one of them")
        for key in ("memory_gb", "timeout_minutes"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                yield Problem(key, f"{value} is not above 0")
        if self.save_minutes < 0:
            yield Problem("save_minutes", f"{self.save_minutes} is negative; 0 saves after every batch")
