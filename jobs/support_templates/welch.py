"""Welch's comparison of two means with unequal variances.

t = (mean_a - mean_b) / sqrt(v_a/n_a + v_b/n_b) with the Welch-Satterthwaite degrees of freedom
(Welch, Biometrika 34, 1947). Values are taken as independent draws; where several come from one
case the interval is a little too narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliostat.errors import DataError


@dataclass(frozen=True)
class Comparison:
    """Mean of a, mean of b, and what can be said of their difference."""

    n_a: int
    n_b: int
    mean_a: float
    mean_b: float
    difference: float
    """mean_a - mean_b"""
    low: float
    high: float
    """Ends of the confidence interval of the difference."""
    t: float
    degrees: float
    p: float
    """Two-sided."""


def welch(
    a: NDArray[np.float64], b: NDArray[np.float64], *, confidence: float = 0.95
) -> Comparison:
    """Compare two samples of at least two values each.

    Two constant samples have no standard error: the interval is then a point, and p is one or
    zero.
    """
    from scipy.special import stdtr, stdtrit

    if len(a) < 2 or len(b) < 2:
        raise DataError(
            f"a Welch interval needs at least two values on each side: got {len(a)} and {len(b)}"
        )
    mean_a, mean_b = float(np.mean(a)), float(np.mean(b))
    square_a, square_b = float(np.var(a, ddof=1)) / len(a), float(np.var(b, ddof=1)) / len(b)
    difference, error = mean_a - mean_b, math.sqrt(square_a + square_b)
    if error == 0.0:
        t = math.copysign(math.inf, difference) if difference else 0.0
        degrees, half = float(len(a) + len(b) - 2), 0.0
        p = 0.0 if difference else 1.0
    else:
        t = difference / error
        degrees = error**4 / (square_a**2 / (len(a) - 1) + square_b**2 / (len(b) - 1))
        half = error * float(stdtrit(degrees, 0.5 + confidence / 2))
        p = 2 * float(stdtr(degrees, -abs(t)))
    return Comparison(
        n_a=len(a),
        n_b=len(b),
        mean_a=mean_a,
        mean_b=mean_b,
        difference=difference,
        low=difference - half,
        high=difference + half,
        t=t,
        degrees=degrees,
        p=p,
    )
