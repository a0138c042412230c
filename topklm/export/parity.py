"""Do two forms of a model compute the same? Logits, losses and selections on the same tokens, by the rules of TopK.

TopK is discontinuous: where the k-th and the next entry are closer than rounding, two correct implementations select
differently, and everything after differs visibly. So three things are measured. *Free*: both sides as they are, which
is what a user sees. *Told*: the second side is told what the first selected, so that nothing amplifies rounding and the
logits must agree to rounding. *Fresh flips*: rows (a token in a block) in which the told side would itself have
selected otherwise. With d the largest difference of the two streams in such a row, an entry that is lost and one
that is gained are at most 2 d apart; a wider gap means that the two do not select by the same rule.

Of the other activations flips are counted and bounded likewise; where thresholds decide, an entry can be
lost without another one gained, and there is no such gap.

In fp64 no exception is made: nothing may be selected differently. (Hugging Face's Llama computes norms and rotary
angles in fp32 even then; `sides` widens them. So fp64 tells whether weights and structure are the same, fp32 whether
the whole is, as it comes.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from topklm.errors import ParityError
from topklm.export.config import ParityConfig, Precision
from topklm.export.sides import Side, Trace

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp64": torch.float64}
LISTED = 100
"""Flips that are listed one by one."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What is still the same. Differences of logits are told in standard deviations of the logits."""

    logits: float
    """Largest difference of a logit; of sparse models, where both select the same."""
    streams: float
    """Largest difference in the stream before a cut, in root mean squares of it, where both select the same."""
    flips: float
    """Share of the rows (a token in a sparse block) that may be fresh flips."""
    few: int
    """Fresh flips that are no matter however few the rows are."""
    loss: float
    """Difference of the losses in nats per token; of sparse models, where both select the same."""

    def times(self, factor: float) -> Bounds:
        """Bounds that are `factor` times as wide."""
        wider = {name: value * factor for name, value in asdict(self).items()}
        return Bounds(**{**wider, "few": round(wider["few"])})


BOUNDS: dict[str, Bounds] = {
    "fp32": Bounds(logits=1e-3, streams=1e-3, flips=0.01, few=3, loss=0.01),
    "fp64": Bounds(logits=1e-8, streams=1e-8, flips=0.0, few=0, loss=1e-8),
}


@dataclass(kw_only=True)
class LayerParity:
    """One sparse block. A row is a token."""

    layer: int
    rows: int = 0
    flips: int = 0
    """Rows in which the free sides select differently."""
    fresh_flips: int = 0
    """Rows in which the second side would select differently although everything before was the same."""
    gap: float = 0.0
    """Largest distance between an entry that was lost and one that was gained in a fresh flip."""
    gap_bound: float = 0.0
    """What that distance may be in that row: twice the largest difference of the streams."""
    stream: float = 0.0
    """Largest difference of the streams, in their root mean square, where both sides select the same."""
    l0_mean: float | None = None
    """Entries per token that are not zero after the cut, on the second side; null where topklm runs it."""
    l0_max: int | None = None


@dataclass(kw_only=True)
class PrecisionParity:
    """Both sides in one precision."""

    precision: Precision
    tokens: int = 0
    logit_std: float = 0.0
    """Standard deviation of the first side's logits: the unit of the bounds."""
    logit_max: float = 0.0
    """Largest difference of a logit, free."""
    logit_mean: float = 0.0
    agreement: float = 0.0
    """Share of the tokens after which both sides hold the same token for the most probable, free."""
    loss_a: float = 0.0
    """Nats per token."""
    loss_b: float = 0.0
    told_logit_max: float | None = None
    """Largest difference of a logit where both sides select the same; null where there is nothing to select."""
    told_logit_mean: float | None = None
    told_agreement: float | None = None
    told_loss_b: float | None = None
    layers: list[LayerParity] = field(default_factory=list)
    listed: list[dict[str, Any]] = field(default_factory=list)
    """The first fresh flips: layer, token (counted over all windows), entries lost and gained, gap."""
    problems: list[str] = field(default_factory=list)
    """What is beyond its bound."""

    @property
    def rows(self) -> int:
        return sum(layer.rows for layer in self.layers)

    @property
    def flips(self) -> int:
        return sum(layer.flips for layer in self.layers)

    @property
    def fresh_flips(self) -> int:
        return sum(layer.fresh_flips for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The result of a comparison."""

    a: str
    b: str
    text: str
    """What the tokens are."""
    precisions: list[PrecisionParity]

    @property
    def problems(self) -> list[str]:
        """Everything that is beyond its bound; empty if the two are the same model."""
        return [f"{p.precision}: {problem}" for p in self.precisions for problem in p.problems]

    def demand(self) -> None:
        """Raise `ParityError` with all problems, if there are any."""
        if self.problems:
            raise ParityError(f"{self.b} is not {self.a}:\n  - " + "\n  - ".join(self.problems))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, for `parity.json`; what is not finite is null, and among the problems."""
        figures = asdict(self, dict_factory=lambda items: {key: _finite(value) for key, value in items})
        return {**figures, "passed": not self.problems}


def compare(
    a: Side,
    b: Side,
    tokens: Tensor,
    config: ParityConfig,
    *,
    names: tuple[str, str] = ("a", "b"),
    text: str = "tokens",
    progress: bool = False,
) -> Parity:
    """Run both sides on tokens [N, T], one window at a time, in each precision; both end in the last of these.

    `progress`: show a bar on a terminal.
    """
    device = torch.device(config.device)
    found = []
    with _progress(len(tokens) * len(config.precisions), progress) as advance:
        for precision in config.precisions:
            for side in (a, b):
                side.to(DTYPES[precision], device)
            bounds = BOUNDS[precision].times(config.tolerance)
            found.append(_compare(a, b, tokens.to(device), precision, bounds, advance))
    return Parity(a=f"{names[0]} ({a.what})", b=f"{names[1]} ({b.what})", text=text, precisions=found)


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[], object]]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("compare", total=total)
        yield lambda: bar.advance(task)


def _compare(
    a: Side, b: Side, tokens: Tensor, precision: Precision, bounds: Bounds, advance: Callable[[], object]
) -> PrecisionParity:
    result = PrecisionParity(precision=precision)
    free, told = _Logits(), _Logits()
    is_told = False
    for number, window in enumerate(tokens):
        first, second = a.trace(window[None]), b.trace(window[None])
        if (n := len(first.streams)) != (m := len(second.streams)):
            result.problems.append(f"the first has {n} sparse blocks, the second {m}")
            return result
        if wrong := _other_sizes(first, second):
            result.problems += wrong
            return result
        if not result.layers:
            result.layers = [LayerParity(layer=layer) for layer in range(n)]
        free.add(first.logits[0], second.logits[0], window)
        _add_l0(result.layers, second)
        for layer, x, y in zip(result.layers, first.selected, second.selected, strict=True):
            layer.rows += len(window)
            layer.flips += int((x != y).any(-1).sum())
        is_told = bool(first.streams) and b.can_be_told
        same = b.trace(window[None], first.selected) if is_told else second
        told.add(first.logits[0], same.logits[0], window)
        _add_streams(result, first, same, number * len(window))
        advance()
    result.tokens = free.rows
    result.logit_std = free.std
    result.logit_max, result.logit_mean, result.agreement = free.figures
    result.loss_a, result.loss_b = free.losses
    if is_told:
        result.told_logit_max, result.told_logit_mean, result.told_agreement = told.figures
        result.told_loss_b = told.losses[1]
    result.problems += _problems(result, bounds)
    return result


def _other_sizes(a: Trace, b: Trace) -> list[str]:
    """What makes the two incomparable."""
    sizes = [("logits", a.logits.shape[-1], b.logits.shape[-1])]
    if a.streams:
        sizes.append(("neurons in a block", a.streams[0].shape[-1], b.streams[0].shape[-1]))
    return [f"the first has {n} {what}, the second {m}" for what, n, m in sizes if n != m]


class _Logits:
    """Sums over the windows, in fp64."""

    def __init__(self) -> None:
        self.rows = self.entries = self.targets = self.agree = 0
        self.largest = self.difference = self.total = self.squares = 0.0
        self.loss = [0.0, 0.0]

    def add(self, a: Tensor, b: Tensor, tokens: Tensor) -> None:
        """Logits [T, V] of both sides for one window [T]."""
        a, b = a.double(), b.double()
        difference = (a - b).abs()
        # A NaN must not be lost in the maximum.
        self.largest = max(self.largest, difference.max().item()) if not difference.isnan().any() else math.nan
        self.difference += difference.sum().item()
        self.total, self.squares = self.total + a.sum().item(), self.squares + a.square().sum().item()
        self.agree += int((a.argmax(-1) == b.argmax(-1)).sum())
        self.rows, self.entries, self.targets = self.rows + len(a), self.entries + a.numel(), self.targets + len(a) - 1
        for i, logits in enumerate((a, b)):
            self.loss[i] += F.cross_entropy(logits[:-1], tokens[1:], reduction="sum").item()

    @property
    def std(self) -> float:
        return math.sqrt(max(0.0, self.squares / self.entries - (self.total / self.entries) ** 2))

    @property
    def figures(self) -> tuple[float, float, float]:
        return self.largest, self.difference / self.entries, self.agree / self.rows

    @property
    def losses(self) -> tuple[float, float]:
        return self.loss[0] / max(1, self.targets), self.loss[1] / max(1, self.targets)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _add_l0(layers: list[LayerParity], trace: Trace) -> None:
    """`layer.rows` are those before this window."""
    for layer, l0 in zip(layers, trace.l0, strict=False):
        before, rows = layer.l0_mean or 0.0, layer.rows
        layer.l0_mean = (before * rows + l0.sum().item()) / (rows + l0.numel())
        layer.l0_max = max(layer.l0_max or 0, int(l0.max()))


def _add_streams(result: PrecisionParity, first: Trace, second: Trace, offset: int) -> None:
    """Differences of the streams, and the rows that one side alone would have selected otherwise."""
    for i, layer in enumerate(result.layers):
        x, y = first.streams[i][0].double(), second.streams[i][0].double()  # [T, D]
        mine, theirs = first.selected[i][0], second.selected[i][0]
        difference = (x - y).abs().amax(-1)  # [T]
        scale = x.square().mean().sqrt().item()
        relative = difference.max().item() / scale if scale else difference.max().item()
        layer.stream = max(layer.stream, relative) if not math.isnan(relative) else math.nan
        if first.exact and int((mine.sum(-1) != theirs.sum(-1)).sum()):
            message = (
                f"block {layer.layer}: the second side selects {int(theirs[0].sum())} entries, not {int(mine[0].sum())}"
            )
            if message not in result.problems:
                result.problems.append(message)
            continue
        for row in (mine != theirs).any(-1).nonzero()[:, 0].tolist():
            lost, gained = mine[row] & ~theirs[row], theirs[row] & ~mine[row]
            layer.fresh_flips += 1
            gap, bound = 0.0, 2 * difference[row].item()
            if first.by_value:  # else nothing is exchanged for something else, and only the share of flips is bounded
                gap = (x[row][lost].max() - x[row][gained].min()).item()
            if gap > layer.gap:
                layer.gap, layer.gap_bound = gap, bound
            if not gap <= bound:
                result.problems.append(
                    f"block {layer.layer}, token {offset + row}: entries {gap:.3g} apart are exchanged though the "
                    f"streams differ by {bound / 2:.3g}: another rule of selection"
                )
            if len(result.listed) < LISTED:
                entries = (lost.nonzero()[:, 0].tolist(), gained.nonzero()[:, 0].tolist())
                result.listed.append(
                    {"layer": i, "token": offset + row, "lost": entries[0], "gained": entries[1], "gap": gap}
                )


def _problems(result: PrecisionParity, bounds: Bounds) -> list[str]:
    """What is beyond its bound. Written so that NaN is."""
    found = []
    largest, loss, where = result.logit_max, result.loss_b, ""
    if result.told_logit_max is not None and result.told_loss_b is not None:
        # One flip that nobody can help may turn a whole window: what follows it freely is shown, and proves nothing.
        largest, loss, where = result.told_logit_max, result.told_loss_b, " where both select the same"
    unit = result.logit_std or 1.0
    if not largest <= bounds.logits * unit:
        found.append(f"logits differ by up to {largest:.3g}{where}; bound {bounds.logits * unit:.3g}")
    if not abs(result.loss_a - loss) <= bounds.loss:
        found.append(f"the losses{where} are {result.loss_a:.6f} and {loss:.6f}; bound {bounds.loss:g}")
    for layer in result.layers:
        if not layer.stream <= bounds.streams:
            found.append(f"the stream before the cut of block {layer.layer} differs by {layer.stream:.3g}; bound "
                         f"{bounds.streams:g}")  # fmt: skip
    if not result.fresh_flips <= bounds.flips * result.rows + bounds.few:
        share = result.fresh_flips / result.rows
        found.append(f"{share:.2%} of the rows are selected otherwise; bound {bounds.flips:.2%}, or {bounds.few} rows")
    return found
