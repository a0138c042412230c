"""What some seeds can tell: mean and standard deviation, interval and detectable ratio."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from topklm.report.student import t_quantile


@dataclass(frozen=True)
class Spread:
    """Some values of one figure, a value per seed."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Arithmetic mean; None without values."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """Standard deviation of a sample (n - 1); None for fewer than two values."""
        return statistics.stdev(self.values) if self.n > 1 else None


@dataclass(frozen=True)
class RatioSpread:
    """Ratios to the dense twin of the same seed; their logarithms are what interval and power are computed of."""

    values: tuple[float, ...]

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the ratio, by Student's t of the log ratios over the seeds; None for fewer than two."""
        if len(self.values) < 2:
            return None
        logs, half = self._logs, t_quantile(0.975, len(self.values) - 1) * self._stderr
        middle = statistics.fmean(logs)
        return math.exp(middle - half), math.exp(middle + half)

    @property
    def detectable(self) -> float | None:
        """The smallest ratio above 1 that so many seeds with this spread would tell from 1 in about 80 % of the cases,
        at 5 % two-sided: exp((t_0.975 + t_0.8) sd / sqrt(n)) of the log ratios. None for fewer than two seeds."""
        if len(self.values) < 2:
            return None
        freedom = len(self.values) - 1
        return math.exp((t_quantile(0.975, freedom) + t_quantile(0.8, freedom)) * self._stderr)

    @property
    def differs(self) -> bool:
        """Whether the ratio is another than 1 by what these seeds can tell: its interval excludes 1, and it is beyond
        `detectable`. Otherwise the word is inconclusive."""
        if self.interval is None or self.detectable is None:
            return False
        low, high = self.interval
        return (low > 1 or high < 1) and abs(statistics.fmean(self._logs)) >= math.log(self.detectable)

    @property
    def _logs(self) -> Sequence[float]:
        return [math.log(value) for value in self.values]

    @property
    def _stderr(self) -> float:
        return statistics.stdev(self._logs) / math.sqrt(len(self.values))
