"""When the templates have moved away from the classifier: signals between two trainings.

Templates are added and withdrawn every week, and a classifier knows only those of its label map.
The share of selections it could not have suggested, and its top-5 accuracy against the day of its
release, say when to train again. Wyatte et al. (arXiv 2405.15765) state the need; the signals and
their thresholds are ours. Nothing here retrains: a new label map always means a new classifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from heliostat.errors import DataError
from jobs.support_templates.label_map import LabelMap


@dataclass(frozen=True)
class RetrainConfig:
    """When to train a new classifier."""

    window_days: int = 7
    """Days over which the out-of-map rate is taken."""
    max_out_of_map_rate: float = 0.05
    """Retrain above this share of selections outside the label map."""
    max_top5_fall: float = 0.03
    """Retrain when top-5 accuracy has fallen this far below its value at release."""
    min_holdout_selections: int = 100
    """Selections in the holdout below which top-5 accuracy is left open."""


@dataclass(frozen=True)
class RetrainSignal:
    """Whether to retrain, and the figures behind it."""

    selections: int
    """Template selections in the window."""
    out_of_map_rate: float | None
    """None without a selection."""
    top5: float | None
    top5_at_release: float | None
    reasons: tuple[str, ...]
    """One sentence for each threshold crossed; none means that the classifier may stay."""

    @property
    def should_retrain(self) -> bool:
        return bool(self.reasons)


def out_of_map_rate(template_ids: Sequence[str], label_map: LabelMap) -> float:
    """Share of template selections whose template is not in the label map."""
    if not template_ids:
        raise DataError("the out-of-map rate needs at least one template selection")
    return sum(template_id not in label_map for template_id in template_ids) / len(template_ids)


def new_templates(template_ids: Iterable[str], label_map: LabelMap) -> list[tuple[str, int]]:
    """Templates outside the label map with their volume, the most used first."""
    counts = Counter(template_id for template_id in template_ids if template_id not in label_map)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def retrain_signal(
    selections: Iterable[tuple[datetime, str]],
    label_map: LabelMap,
    *,
    now: datetime,
    top5: float | None,
    top5_at_release: float | None,
    config: RetrainConfig,
) -> RetrainSignal:
    """Judge the template selections of the last days, given as (time, template id).

    Accuracy that is not known, now or at release, says nothing.
    """
    start = now - timedelta(days=config.window_days)
    recent = [template_id for at, template_id in selections if start < at <= now]
    rate = out_of_map_rate(recent, label_map) if recent else None
    reasons = []
    if rate is not None and rate > config.max_out_of_map_rate:
        reasons.append(
            f"{rate:.1%} of {len(recent)} selections in {config.window_days} days are outside "
            f"label map {label_map.label_map_version} (limit {config.max_out_of_map_rate:.1%})"
        )
    if top5 is not None and top5_at_release is not None:
        fall = top5_at_release - top5
        if _at_least(fall, config.max_top5_fall):
            reasons.append(
                f"top-5 accuracy is {top5:.1%}, {100 * fall:.1f} points below "
                f"{top5_at_release:.1%} at release (limit {100 * config.max_top5_fall:.1f} points)"
            )
    return RetrainSignal(
        selections=len(recent),
        out_of_map_rate=rate,
        top5=top5,
        top5_at_release=top5_at_release,
        reasons=tuple(reasons),
    )


def _at_least(value: float, limit: float) -> bool:
    """`value >= limit` for differences of shares, where 0.85 - 0.82 is a little under 0.03."""
    return value > limit - 1e-9
