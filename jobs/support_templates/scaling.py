"""The scaling report: does the language-model loss predict the classification loss?

For every pair of model size and pretraining checkpoint the classifier is trained once; over all
pairs `cls_loss = a + b * lm_loss` is fitted by least squares (Wyatte et al., arXiv 2405.15765,
figure 3 and section 5). FLOPs come in from the model's own formulas, in two figures: 6 N' D, and
the one that adds the output embedding and attention. Nothing here trains or plots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from heliostat.errors import DataError


@dataclass(frozen=True)
class ScalingPoint:
    """One classifier: what was spent on its pretraining and what it reached."""

    size: str
    """Name of the model size."""
    step: int
    """Pretraining step of the checkpoint."""
    tokens: int
    """Domain tokens seen by the checkpoint."""
    flops: float
    """6 N' D, without embeddings."""
    flops_full: float
    """6 (N' + V d) D + 6 L d s D, with output embedding and causal attention."""
    lm_loss: float
    """Validation loss of the language model, nats per token."""
    cls_loss: float
    """Test loss of the classifier, nats."""
    top1: float
    top3: float
    top5: float


@dataclass(frozen=True)
class ScalingFit:
    """Least squares `cls_loss = a + b * lm_loss`."""

    a: float
    b: float
    r: float
    """Pearson correlation of the two losses."""
    residuals: tuple[float, ...]
    """cls_loss minus its prediction, in the order of the points."""


def fit_line(points: Sequence[ScalingPoint]) -> ScalingFit:
    """The least-squares line over all points."""
    if len(points) < 3:
        raise DataError(f"a scaling fit needs at least three points: got {len(points)}")
    x = np.array([point.lm_loss for point in points])
    y = np.array([point.cls_loss for point in points])
    dx, dy = x - x.mean(), y - y.mean()
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or not dx.any():
        raise DataError(
            f"a scaling fit needs finite losses and at least two different language-model losses: "
            f"got {x.tolist()} and {y.tolist()}"
        )
    b = float(dx @ dy / (dx @ dx))
    a = float(y.mean() - b * x.mean())
    spread = float(np.sqrt((dx @ dx) * (dy @ dy)))
    return ScalingFit(
        a=a,
        b=b,
        r=float(dx @ dy) / spread if spread > 0.0 else 0.0,
        residuals=tuple(float(value) for value in y - (a + b * x)),
    )


def largest_rise(points: Sequence[ScalingPoint]) -> float:
    """How far any later checkpoint's language-model loss lies above an earlier one of its size.

    0.0 means that the loss falls monotonically over the checkpoints of every size.
    """
    rise = 0.0
    for size in {point.size for point in points}:
        ordered = sorted((p for p in points if p.size == size), key=lambda p: p.tokens)
        losses = np.array([point.lm_loss for point in ordered])
        rise = max(rise, float(np.max(losses - np.minimum.accumulate(losses))))
    return rise


def scaling_rows(
    points: Sequence[ScalingPoint], fit: ScalingFit
) -> list[dict[str, str | int | float]]:
    """One row for each point, by size and tokens, with its residual."""
    pairs = sorted(zip(points, fit.residuals, strict=True), key=lambda p: (p[0].size, p[0].tokens))
    return [{**asdict(point), "residual": residual} for point, residual in pairs]
