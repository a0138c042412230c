"""Student's t, for means over a few seeds, runs or neurons."""

from __future__ import annotations

from topklm.optional import require


def t_quantile(p: float, freedom: int) -> float:
    """The t with P(T <= t) = p for so many degrees of freedom. Raises `ConfigError` without scipy."""
    return float(require("scipy.stats", "topklm[interp]").t.ppf(p, freedom))
