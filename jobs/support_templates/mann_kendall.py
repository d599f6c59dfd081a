"""The Mann-Kendall trend test: does one quantity rise with another, whatever the shape?

S counts the pairs that rise together minus those that move apart. Without ties its variance under
no trend is n(n-1)(2n+5)/18, and every group of t tied values takes t(t-1)(2t+5)/18 from it (Mann,
Econometrica 13, 1945; Kendall, Rank Correlation Methods, 4th edition, chapter 4). The classical
test runs over time, where no two moments are equal. Accuracies of templates do tie, so the order
may have ties too; then Kendall's variance for ties in both rankings applies (equation 4.3 there).
Z has Kendall's continuity correction of one, and p is two-sided from the normal distribution.

Not a test of linearity, and not for serially dependent series, which reject too often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from heliostat.errors import DataError


@dataclass(frozen=True)
class Trend:
    """The outcome of a Mann-Kendall test."""

    n: int
    s: int
    variance: float
    z: float
    p: float
    """Two-sided; 1.0 where everything is tied."""


def mann_kendall(values: Sequence[float]) -> Trend:
    """The trend of a series in its given order."""
    return mann_kendall_by(range(len(values)), values)


def mann_kendall_by(order: Sequence[float], values: Sequence[float]) -> Trend:
    """The trend of `values` with increasing `order`; both may have ties."""
    x, y = np.asarray(order, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(x) != len(y) or len(x) < 3:
        raise DataError(
            f"a trend test needs at least three pairs: got {len(x)} orders and {len(y)} values"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("a trend test needs finite numbers: the series holds NaN or infinity")
    s = sum(
        int(np.sum(np.sign(x[i + 1 :] - x[i]) * np.sign(y[i + 1 :] - y[i]))) for i in range(len(x))
    )
    variance = _variance(len(x), _tie_groups(x), _tie_groups(y))
    z = 0.0 if s == 0 or variance == 0.0 else (s - math.copysign(1, s)) / math.sqrt(variance)
    return Trend(n=len(x), s=s, variance=variance, z=z, p=math.erfc(abs(z) / math.sqrt(2)))


def _tie_groups(values: NDArray[np.float64]) -> list[int]:
    return [int(size) for size in np.unique(values, return_counts=True)[1]]


def _variance(n: int, t: Sequence[int], u: Sequence[int]) -> float:
    """Variance of S for tie groups of sizes t in one ranking and u in the other.

    Fractions, so that it is exactly zero where one ranking is all ties.
    """

    def plain(sizes: Sequence[int]) -> int:
        return sum(size * (size - 1) * (2 * size + 5) for size in sizes)

    def pairs(sizes: Sequence[int]) -> int:
        return sum(size * (size - 1) for size in sizes)

    def triples(sizes: Sequence[int]) -> int:
        return sum(size * (size - 1) * (size - 2) for size in sizes)

    variance = Fraction(n * (n - 1) * (2 * n + 5) - plain(t) - plain(u), 18)
    variance += Fraction(pairs(t) * pairs(u), 2 * n * (n - 1))
    variance += Fraction(triples(t) * triples(u), 9 * n * (n - 1) * (n - 2))
    return float(variance)
