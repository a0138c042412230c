"""Spikes of the loss: a step whose loss is far above those before it, by a robust measure.

With m the median of the last `window` losses and d = 1.4826 times the median of |loss - m| (which is the standard
deviation where they are normal; never taken below a thousandth of |m|), a spike begins at a loss above m + threshold d
and has ended with the first one that is not. Losses of a spike never enter the window: a run that has diverged does not
get used to it. Steps that were skipped have no loss here.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from topklm.errors import Problem

MAD_TO_DEVIATION = 1.4826
_LEAST_SHARE = 1e-3


@dataclass(frozen=True, kw_only=True)
class SpikesConfig:
    """When a step's loss counts as a spike."""

    window: int = 50
    """Losses of so many steps before are what a loss is compared with; half of them must be there."""
    threshold: float = 6.0
    """A spike is so many standard deviations, estimated by the median absolute deviation, above their median. In the
    quick start, warm-up and annealing included, no step is more than 2.8 above."""

    def problems(self) -> Iterator[Problem]:
        if self.window < 4:
            yield Problem("window", f"{self.window} is below 4, too few for a median of deviations")
        if not self.threshold > 0:
            yield Problem("threshold", f"{self.threshold} is not positive; spikes=null looks for none")


@dataclass(frozen=True)
class Spike:
    """A step with which the loss left its usual range."""

    step: int
    """Counted from 0."""
    loss: float
    median: float
    deviation: float
    """1.4826 times the median absolute deviation, or a thousandth of the median."""

    @property
    def multiple(self) -> float:
        """Deviations above the median."""
        return (self.loss - self.median) / self.deviation


class SpikeDetector:
    """Sees the losses of a run one after the other. `state`: what `state_dict` gave before an interruption."""

    def __init__(self, config: SpikesConfig, state: dict[str, Any] | None = None):
        self.config = config
        state = state or {}
        self.count: int = state.get("count", 0)
        """Spikes so far."""
        self._window: list[float] = state.get("window", [])[-config.window :]
        self._range: tuple[float, float] | None = None
        given = state.get("current")
        self.current: Spike | None = None if given is None else Spike(**given)
        """The spike that has not ended."""

    def see(self, step: int, loss: float) -> Spike | None:
        """The next step's loss, finite. Returns a spike where one begins, or where one ends: then `current` is None."""
        if 2 * len(self._window) < self.config.window:
            self._window.append(loss)
            return None
        median, deviation = self._usual()
        if loss > median + self.config.threshold * deviation:
            if self.current is not None:
                return None
            self.current = Spike(step, loss, median, deviation)
            self.count += 1
            return self.current
        self._window = [*self._window, loss][-self.config.window :]
        self._range = None
        ended, self.current = self.current, None
        return ended

    def _usual(self) -> tuple[float, float]:
        if self._range is None:
            median = statistics.median(self._window)
            mad = statistics.median(abs(loss - median) for loss in self._window)
            self._range = median, max(MAD_TO_DEVIATION * mad, _LEAST_SHARE * abs(median)) or _LEAST_SHARE
        return self._range

    def state_dict(self) -> dict[str, Any]:
        """JSON that a new detector goes on from."""
        current = None if self.current is None else vars(self.current)
        return {"count": self.count, "window": self._window, "current": current}
