"""Calibration: whether a classifier that says 80 % is right in 80 % of those cases.

The expected calibration error (Naeini, Cooper, Hauskrecht, AAAI 2015; Guo et al., arXiv
1706.04599, equation 3) over equal-width bins: `ECE = sum_b n_b / n |accuracy_b - confidence_b|`.
The reliability diagram draws the two terms bin by bin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from heliostat.runs import figure_style as style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Predictions sorted into equal-width bins of confidence; empty bins hold 0."""

    counts: np.ndarray
    confidence: np.ndarray
    """Mean confidence in each bin."""
    accuracy: np.ndarray
    """Share of right predictions in each bin."""

    @property
    def error(self) -> float:
        """The expected calibration error."""
        weights = self.counts / self.counts.sum()
        return float(weights @ np.abs(self.accuracy - self.confidence))


def reliability(
    confidence: Sequence[float], correct: Sequence[bool], bins: int = BINS
) -> Reliability:
    """Sort top-1 probabilities, and whether each prediction was right, into bins."""
    sure = np.asarray(confidence, dtype=float)
    right = np.asarray(correct, dtype=float)
    if len(sure) == 0 or len(sure) != len(right):
        raise ValueError(f"got {len(sure)} confidences and {len(right)} outcomes; need as many")
    # Bin b is (b/bins, (b+1)/bins]: a confidence of exactly 1 falls into the last.
    places = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    full = np.maximum(counts, 1)
    return Reliability(
        counts=counts,
        confidence=np.bincount(places, weights=sure, minlength=bins) / full,
        accuracy=np.bincount(places, weights=right, minlength=bins) / full,
    )


def plot_reliability(models: Mapping[str, Reliability], title: str) -> bytes:
    """A reliability diagram for each model, with the histogram of its confidence below."""
    with style.styled():
        height = 5.0 if len(models) < 3 else 4.2
        figure, axes = style.new_figure(height, 2, len(models), ratios=(3, 1))
        for index, (name, model) in enumerate(models.items()):
            upper, lower = axes[index], axes[index + len(models)]
            _draw_diagram(upper, model)
            _draw_histogram(lower, model)
            upper.set_title(f"{name}: ECE {model.error:.3f}")
            lower.set_xlabel("confidence")
            if index == 0:
                upper.set_ylabel("accuracy")
                lower.set_ylabel("share")
        style.add_title(figure, title)
        style.add_legend(figure, axes[: len(models)])
        return style.to_png(figure)


def _draw_diagram(axes: Axes, model: Reliability) -> None:
    bins = len(model.counts)
    filled = model.counts > 0
    at = (np.arange(bins)[filled] + 0.5) / bins
    low = np.minimum(model.accuracy, model.confidence)[filled]
    gap = np.abs(model.accuracy - model.confidence)[filled]
    axes.bar(at, model.accuracy[filled], 0.92 / bins, color=style.colour(0), label="accuracy")
    axes.bar(
        at,
        gap,
        0.92 / bins,
        bottom=low,
        color="none",
        edgecolor=style.colour(1),
        hatch="////",
        lw=0.9,
        label="gap to confidence",
    )
    axes.plot([0, 1], [0, 1], color=style.FAINT, ls="--", lw=1.2, label="perfectly calibrated")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _draw_histogram(axes: Axes, model: Reliability) -> None:
    bins = len(model.counts)
    shares = model.counts / model.counts.sum()
    axes.bar((np.arange(bins) + 0.5) / bins, shares, 0.92 / bins, color=style.FAINT)
    axes.set_xlim(0, 1)
