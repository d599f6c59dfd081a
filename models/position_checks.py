"""What a position scheme must be refused for, or flagged for, before it is used.

`models.positions` refuses values that mean nothing. Here are the refusals and the flags that depend
on what the scheme is used for: inference, training or generation, at which length, on a model that
was trained how.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.positions import (
    EXPANDED,
    WINDOWED,
    LogN,
    PositionPlan,
    PositionScheme,
    max_relative_position,
)


@dataclass(frozen=True)
class PlanFlags:
    """What a reader of a result should know about the plan it was measured under."""

    max_relative_position: float
    """Largest P(i, j) at the length read."""
    is_extrapolating: bool
    """Whether relative positions occur that the model never saw in training."""
    window_not_recommended: bool
    """w >= L on an input longer than L: the last positions of the training range are hardly
    trained, and quality collapses."""


def flags(position_plan: PositionPlan, length: int) -> PlanFlags:
    """The flags of reading `length` tokens under `position_plan`.

    The expanded schemes squeeze positions up to k L into the range of training, so they extrapolate
    beyond k L; every other scheme where its largest relative position is above L - 1.
    """
    furthest = max_relative_position(position_plan, length)
    trained = position_plan.train_length
    if position_plan.scheme.name in EXPANDED:
        is_extrapolating = length > position_plan.interval * trained
    else:
        is_extrapolating = furthest > trained - 1
    return PlanFlags(
        max_relative_position=furthest,
        is_extrapolating=is_extrapolating,
        window_not_recommended=(
            position_plan.scheme.name in WINDOWED
            and position_plan.window >= trained
            and length > trained
        ),
    )


def require_inference(scheme: PositionScheme) -> None:
    """Refuse what is no scheme of inference.

    Raises:
        ValueError: inv_leaky_rerope, which is trained with and read with plain rope; or a leaky
            interval of exactly 1, which is rope.
    """
    if scheme.name == "inv_leaky_rerope":
        raise ValueError("inv_leaky_rerope is a scheme of training: read such a model with rope.")
    if scheme.name == "leaky_rerope" and scheme.interval == 1.0:
        raise ValueError("interval of leaky_rerope must be above 1, got 1.0.")


def require_fixed_interval(scheme: PositionScheme) -> None:
    """Refuse a k that would follow the length while tokens are generated.

    Raises:
        ValueError: An expanded scheme without an interval: cached keys would have been rotated for
            another k than the query.
    """
    if scheme.name in EXPANDED and scheme.interval is None:
        raise ValueError(
            f"{scheme.name} needs a fixed interval to generate: one that follows the length would "
            "not match the keys already cached."
        )


def require_log_n(scheme: PositionScheme, trained_with: LogN) -> None:
    """Refuse a log-n mode that contradicts the training of the model.

    Raises:
        ValueError: `train` on a model that was not trained with it, or `none` on one that was.
    """
    if scheme.log_n == "train" and trained_with != "train":
        raise ValueError("log_n 'train' needs a model that was trained with it; 'post' does not.")
    if scheme.log_n != "train" and trained_with == "train":
        raise ValueError(
            f"log_n {scheme.log_n!r} on a model that was trained with log_n 'train': use 'train'."
        )


def require_training_reach(position_plan: PositionPlan, target_length: int) -> None:
    """Refuse an inverse leaky training that does not reach `target_length`.

    Raises:
        ValueError: The largest position trained, w + (L - 1 - w) / k, is below target_length - 1.
    """
    reached = max_relative_position(position_plan, position_plan.train_length)
    if reached < target_length - 1:
        raise ValueError(
            f"{position_plan.scheme.name} with window {position_plan.scheme.window} and interval "
            f"{position_plan.interval:g} trains positions up to {reached:g} only, and reading "
            f"{target_length} tokens needs {target_length - 1}: take a smaller interval."
        )


def require_consecutive(position_ids_BT: torch.Tensor, segments_BT: torch.Tensor | None) -> None:
    """Refuse positions that do not rise by one from token to token inside a document.

    Schemes with several branches find their windows by counting tokens. Another start of a document
    is fine.

    Args:
        position_ids_BT: Positions.
        segments_BT: The document of each token, -1 for padding; None where a row is one document.

    Raises:
        ValueError: A step inside a document is not one.
    """
    steps = position_ids_BT.diff(dim=1)
    if segments_BT is None:
        inside = torch.ones_like(steps, dtype=torch.bool)
    else:
        inside = (segments_BT.diff(dim=1) == 0) & (segments_BT[:, 1:] >= 0)
    if bool(((steps != 1) & inside).any()):
        raise ValueError(
            "position_ids must rise by one from token to token inside a document; mark the starts "
            "of documents with document_ids."
        )
