"""Intervals and what seeds can tell, by hand and against simulation."""

import math
import random
import statistics

import pytest

from topklm.report.student import t_quantile
from topklm.report.sweeps.spread import RatioSpread, Spread


def test_one_value_has_no_spread():
    assert (Spread((3.0,)).mean, Spread((3.0,)).sd) == (3.0, None)
    assert Spread(()).mean is None
    assert (RatioSpread((1.1,)).interval, RatioSpread((1.1,)).detectable) == (None, None)


def test_an_interval_by_hand():
    # Logs 0.1, 0.2, 0.3: mean 0.2, sd 0.1, standard error 0.1 / sqrt(3), t = 4.30265.
    spread = RatioSpread((math.exp(0.1), math.exp(0.2), math.exp(0.3)))
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert spread.interval == pytest.approx((math.exp(0.2 - half), math.exp(0.2 + half)), rel=1e-5)
    assert spread.detectable == pytest.approx(math.exp((4.30265 + 1.06066) * 0.1 / math.sqrt(3)), rel=1e-5)


def test_the_interval_covers_and_the_detectable_ratio_is_detected():
    generator = random.Random(0)
    n, sd, trials = 4, 0.02, 4000
    covered = 0
    for _ in range(trials):
        low, high = RatioSpread(tuple(math.exp(generator.gauss(0.0, sd)) for _ in range(n))).interval
        covered += low <= 1 <= high
    assert covered / trials == pytest.approx(0.95, abs=0.015)
    # Of the true spread; the approximation is a few percent off at so few seeds.
    freedom = n - 1
    ratio = (t_quantile(0.975, freedom) + t_quantile(0.8, freedom)) * sd / math.sqrt(n)
    told = 0
    for _ in range(trials):
        low, _ = RatioSpread(tuple(math.exp(generator.gauss(ratio, sd)) for _ in range(n))).interval
        told += low > 1
    assert told / trials == pytest.approx(0.8, abs=0.07)


def test_standard_deviations_are_of_samples():
    assert Spread((1.0, 2.0, 4.0)).sd == pytest.approx(statistics.stdev([1.0, 2.0, 4.0]))
