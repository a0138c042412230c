"""Student's t against printed tables and closed forms."""

import math

import pytest

from topklm import optional
from topklm.errors import ConfigError
from topklm.report.student import t_quantile


@pytest.mark.parametrize(
    ("p", "freedom", "t"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 3, 3.18245), (0.975, 10, 2.22814), (0.8, 2, 1.06066),
     (0.8, 4, 0.94096), (0.975, 120, 1.97993)],
)  # fmt: skip
def test_quantiles_of_the_tables(p, freedom, t):
    assert t_quantile(p, freedom) == pytest.approx(t, abs=6e-5)


@pytest.mark.parametrize("p", [0.6, 0.8, 0.975, 0.999])
def test_quantiles_in_closed_form(p):
    assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-9)
    a = 2 * p - 1
    assert t_quantile(p, 2) == pytest.approx(a * math.sqrt(2 / (1 - a * a)), rel=1e-9)


def test_without_scipy_it_says_what_to_install(monkeypatch):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(optional.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"scipy.stats is needed: pip install 'topklm\[interp\]'"):
        t_quantile(0.975, 2)
