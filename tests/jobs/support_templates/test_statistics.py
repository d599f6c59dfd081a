"""Mann-Kendall (test vector 11), Welch and least squares against second formulations."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from heliostat.errors import DataError
from jobs.support_templates.mann_kendall import mann_kendall, mann_kendall_by
from jobs.support_templates.scaling import ScalingPoint, fit_line, largest_rise, scaling_rows
from jobs.support_templates.welch import welch

SERIES = st.lists(st.integers(0, 6), min_size=3, max_size=25)


def test_a_rising_series_of_ten() -> None:
    trend = mann_kendall(range(1, 11))
    assert (trend.n, trend.s, trend.variance) == (10, 45, 125.0)
    assert trend.z == pytest.approx(44 / math.sqrt(125), rel=1e-12)
    assert trend.z == pytest.approx(3.9355, abs=5e-5)
    assert trend.p == pytest.approx(8.3e-5, abs=5e-7)
    falling = mann_kendall(range(10, 0, -1))
    assert (falling.s, falling.z, falling.p) == (-45, -trend.z, trend.p)


@given(SERIES)
def test_trend_agrees_with_the_textbook_loop(values: list[int]) -> None:
    n = len(values)
    pairs = itertools.combinations(range(n), 2)
    s = sum((values[j] > values[i]) - (values[j] < values[i]) for i, j in pairs)
    ties = [values.count(value) for value in set(values)]
    variance = (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    trend = mann_kendall(values)
    assert trend.s == s
    assert trend.variance == pytest.approx(variance, abs=1e-9)
    z = (s - (s > 0) + (s < 0)) / math.sqrt(variance) if variance > 0 else 0.0
    assert trend.z == pytest.approx(z, abs=1e-12)
    assert trend.p == pytest.approx(2 * NormalDist().cdf(-abs(z)), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=3, max_size=40))
def test_ties_in_both_rankings_agree_with_kendalls_test(pairs: list[tuple[int, int]]) -> None:
    """scipy's asymptotic Kendall test is this one without the continuity correction."""
    x, y = (list(column) for column in zip(*pairs, strict=True))
    trend = mann_kendall_by(x, y)
    if trend.variance > 0:
        p = stats.kendalltau(x, y, method="asymptotic").pvalue
        assert 2 * NormalDist().cdf(-abs(trend.s) / math.sqrt(trend.variance)) == pytest.approx(p)
    else:
        assert trend.p == 1.0


@given(SERIES, st.randoms())
def test_trend_by_an_order_does_not_depend_on_the_rows_order(
    values: list[int], shuffle: random.Random
) -> None:
    pairs = list(enumerate(values))
    shuffle.shuffle(pairs)
    order, mixed = zip(*pairs, strict=True)
    assert mann_kendall_by(order, mixed) == mann_kendall(values)


def test_tiny_p_values_do_not_vanish() -> None:
    assert 0 < mann_kendall(range(300)).p < 1e-100


@pytest.mark.parametrize("values", [[1, 2], [1, 2, math.nan], []])
def test_series_without_a_trend_are_refused(values: list[float]) -> None:
    with pytest.raises(DataError):
        mann_kendall(values)


SAMPLES = st.lists(st.floats(0, 100), min_size=2, max_size=30).filter(lambda v: np.std(v) > 1e-3)


@given(SAMPLES, SAMPLES)
def test_welch_agrees_with_scipy(a: list[float], b: list[float]) -> None:
    ours = welch(np.array(a), np.array(b), confidence=0.9)
    theirs = stats.ttest_ind(a, b, equal_var=False)
    interval = theirs.confidence_interval(0.9)
    assert ours.t == pytest.approx(theirs.statistic, rel=1e-9, abs=1e-12)
    assert ours.degrees == pytest.approx(theirs.df, rel=1e-9)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-7)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-7, abs=1e-9)
    assert ours.difference == pytest.approx(np.mean(a) - np.mean(b), abs=1e-9)


def test_welch_keeps_p_values_as_small_as_the_papers() -> None:
    draws = np.random.default_rng(0)
    old, new = draws.normal(11.64, 8, 60_000), draws.normal(10.91, 8, 60_000)
    ours = welch(old, new)
    assert 0 < ours.p < 1e-27
    assert ours.p == pytest.approx(stats.ttest_ind(old, new, equal_var=False).pvalue, rel=1e-6)


def test_constant_samples_have_a_point_for_an_interval() -> None:
    same, other = welch(np.full(3, 5.0), np.full(4, 5.0)), welch(np.full(3, 6.0), np.full(4, 5.0))
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)
    assert (other.p, other.low, other.high) == (0.0, 1.0, 1.0)


def test_welch_needs_two_values_on_each_side() -> None:
    with pytest.raises(DataError, match="got 1 and 2"):
        welch(np.ones(1), np.ones(2))


def point(size: str, tokens: int, lm_loss: float, cls_loss: float) -> ScalingPoint:
    return ScalingPoint(
        size=size,
        step=tokens // 1000,
        tokens=tokens,
        flops=6.0 * tokens,
        flops_full=8.0 * tokens,
        lm_loss=lm_loss,
        cls_loss=cls_loss,
        top1=0.5,
        top3=0.7,
        top5=0.8,
    )


POINTS = [
    point("small", 1000, 0.60, 2.30),
    point("small", 2000, 0.50, 1.95),
    point("small", 3000, 0.51, 2.01),
    point("large", 1000, 0.45, 1.70),
    point("large", 2000, 0.40, 1.55),
]


def test_scaling_fit_agrees_with_scipys_regression() -> None:
    fit = fit_line(POINTS)
    theirs = stats.linregress([p.lm_loss for p in POINTS], [p.cls_loss for p in POINTS])
    assert (fit.a, fit.b, fit.r) == pytest.approx((theirs.intercept, theirs.slope, theirs.rvalue))
    for p, residual in zip(POINTS, fit.residuals, strict=True):
        assert p.cls_loss == pytest.approx(fit.a + fit.b * p.lm_loss + residual)
    assert sum(fit.residuals) == pytest.approx(0.0, abs=1e-12)


def test_scaling_fit_recovers_a_line() -> None:
    line = [replace(p, cls_loss=-0.2 + 5 * p.lm_loss) for p in POINTS]
    fit = fit_line(line)
    assert (fit.a, fit.b, fit.r) == pytest.approx((-0.2, 5.0, 1.0))


def test_scaling_rows_carry_both_flops_and_the_residual() -> None:
    fit = fit_line(POINTS)
    rows = scaling_rows(POINTS, fit)
    assert [(row["size"], row["tokens"]) for row in rows][:2] == [("large", 1000), ("large", 2000)]
    assert rows[0]["residual"] == fit.residuals[3]
    assert rows[0].keys() >= {"flops", "flops_full", "lm_loss", "cls_loss", "top1", "top3", "top5"}


def test_rises_of_the_loss_are_measured_within_each_size() -> None:
    assert largest_rise(POINTS) == pytest.approx(0.01)
    assert largest_rise(POINTS[:2]) == 0.0
    creeping = [point("s", i, 0.4 + 0.01 * i, 1.0) for i in range(5)]
    assert largest_rise(creeping) == pytest.approx(0.04)


@pytest.mark.parametrize("points", [POINTS[:2], [replace(p, lm_loss=0.5) for p in POINTS]])
def test_scaling_without_a_slope_is_refused(points: list[ScalingPoint]) -> None:
    with pytest.raises(DataError):
        fit_line(points)
