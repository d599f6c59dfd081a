"""The online analysis: does the classifier save advocates time, and whose predictions save most?

Three questions, each with its test (Wyatte et al., arXiv 2405.15765, section on online results):
the mean selection time in treatment and holdout, by week, with a Welch interval; two model versions
side by side over two weeks, with Welch's t-test; and over the templates with most volume, whether
those that are predicted better also save more time, with the Mann-Kendall test.

Cohorts are compared as they were assigned: a treatment in which the classifier abstained stays in
the treatment, otherwise the comparison would favour the easy cases. Accuracy is measured in the
holdout, where the suggestion cannot have influenced the choice. Nothing here reads or writes files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from heliostat.errors import DataError
from jobs.support_templates.events import EventCounts, Selections, joined
from jobs.support_templates.mann_kendall import Trend, mann_kendall_by
from jobs.support_templates.welch import Comparison, welch

Row = dict[str, str | int | float | None]


@dataclass(frozen=True)
class AnalysisConfig:
    """Settings of the online analysis."""

    confidence: float = 0.95
    """Coverage of the Welch intervals."""
    k: int = 5
    """A prediction is right if the chosen template is among its first k."""
    top_templates: int = 300
    """Templates by volume that the accuracy trend looks at."""
    min_holdout_selections: int = 5
    """A template with fewer holdout selections is left out of the trend and counted."""
    version_days: int = 14
    """Length of the window in which two model versions are compared, days."""


@dataclass(frozen=True)
class VersionPair:
    """Two model versions that served at the same time."""

    old: str
    new: str
    start: datetime
    """Start of the window, with time zone."""


@dataclass(frozen=True)
class SavedTime:
    """Selection time in the holdout (a) against the treatment (b), in seconds."""

    period: str
    """An ISO week, or `all`."""
    holdout: int
    treatment: int
    comparison: Comparison | None
    """Holdout minus treatment; None where a cohort has fewer than two selections."""


@dataclass(frozen=True)
class VersionResult:
    """Selection time under the old version (a) against the new one (b), treatment only."""

    pair: VersionPair
    end: datetime
    comparison: Comparison


@dataclass(frozen=True)
class TemplateResult:
    """How well one template is predicted and what that saves."""

    template_id: str
    volume: int
    """Selections in both cohorts."""
    holdout: int
    accuracy: float
    """Share of holdout selections with the template among the first k."""
    seconds_saved: float
    """Mean selection time in the holdout minus that in the treatment."""


@dataclass(frozen=True)
class OnlineReport:
    """Everything that the analysis found."""

    counts: EventCounts
    overall: SavedTime
    weeks: tuple[SavedTime, ...]
    versions: tuple[VersionResult, ...]
    templates: tuple[TemplateResult, ...]
    """By volume, the largest first."""
    templates_left_out: int
    """Among the top templates, those with too few selections in a cohort."""
    trend: Trend | None
    """Seconds saved with rising accuracy; None with fewer than three templates."""


def analyse(
    predictions: pa.Table,
    feedback: pa.Table,
    *,
    pairs: Sequence[VersionPair],
    config: AnalysisConfig,
) -> OnlineReport:
    """Analyse the logs of `events.py`."""
    selections, counts = joined(predictions, feedback, k=config.k)
    everything = np.ones(counts.selections, dtype=np.bool_)
    templates, left_out = _templates(selections, config)
    trend = None
    if len(templates) >= 3:
        trend = mann_kendall_by(
            [template.accuracy for template in templates],
            [template.seconds_saved for template in templates],
        )
    return OnlineReport(
        counts=counts,
        overall=_saved_time("all", selections, everything, config),
        weeks=tuple(
            _saved_time(str(week), selections, selections.week == week, config)
            for week in np.unique(selections.week)
        ),
        versions=tuple(_version_result(selections, pair, config) for pair in pairs),
        templates=templates,
        templates_left_out=left_out,
        trend=trend,
    )


def saved_time_rows(report: OnlineReport) -> list[Row]:
    """One row for each week and one for all of them."""
    return [
        {
            "period": saved.period,
            "holdout": saved.holdout,
            "treatment": saved.treatment,
            **_comparison_row(saved.comparison, a="holdout_s", b="treatment_s"),
        }
        for saved in (*report.weeks, report.overall)
    ]


def version_rows(report: OnlineReport) -> list[Row]:
    """One row for each pair of model versions."""
    return [
        {
            "old": result.pair.old,
            "new": result.pair.new,
            "start": result.pair.start.isoformat(),
            "end": result.end.isoformat(),
            "old_selections": result.comparison.n_a,
            "new_selections": result.comparison.n_b,
            **_comparison_row(result.comparison, a="old_s", b="new_s"),
        }
        for result in report.versions
    ]


def template_rows(report: OnlineReport) -> list[Row]:
    """One row for each template of the trend test."""
    return [asdict(template) for template in report.templates]


def _saved_time(
    period: str, selections: Selections, within: NDArray[np.bool_], config: AnalysisConfig
) -> SavedTime:
    holdout = selections.seconds[within & selections.is_held_out]
    treatment = selections.seconds[within & ~selections.is_held_out]
    comparison = None
    if min(len(holdout), len(treatment)) >= 2:
        comparison = welch(holdout, treatment, confidence=config.confidence)
    return SavedTime(period, len(holdout), len(treatment), comparison)


def _version_result(
    selections: Selections, pair: VersionPair, config: AnalysisConfig
) -> VersionResult:
    if pair.start.tzinfo is None:
        raise DataError(f"the start of a version comparison needs a time zone: got {pair.start}")
    end = pair.start + timedelta(days=config.version_days)
    within = (selections.at >= _utc(pair.start)) & (selections.at < _utc(end))
    within &= ~selections.is_held_out
    old, new = (
        selections.seconds[within & (selections.model_version == version)]
        for version in (pair.old, pair.new)
    )
    if min(len(old), len(new)) < 2:
        raise DataError(
            f"versions {pair.old!r} and {pair.new!r} have {len(old)} and {len(new)} treatment "
            f"selections from {pair.start.isoformat()} to {end.isoformat()}: expected at least two "
            f"each; versions in the log: {sorted(set(selections.model_version.tolist()))}"
        )
    return VersionResult(pair, end, welch(old, new, confidence=config.confidence))


def _templates(
    selections: Selections, config: AnalysisConfig
) -> tuple[tuple[TemplateResult, ...], int]:
    names, owner = np.unique(selections.template_id, return_inverse=True)
    held = selections.is_held_out

    def totals(mask: NDArray[np.bool_], values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.bincount(owner[mask], weights=values[mask], minlength=len(names))
        return sums.astype(np.float64)

    ones = np.ones(len(owner))
    volume, holdout = np.bincount(owner, minlength=len(names)), totals(held, ones)
    treatment, hits = totals(~held, ones), totals(held, selections.is_hit.astype(np.float64))
    holdout_s, treatment_s = totals(held, selections.seconds), totals(~held, selections.seconds)
    top = np.lexsort((names, -volume))[: config.top_templates]
    enough = (holdout[top] >= max(1, config.min_holdout_selections)) & (treatment[top] >= 1)
    results = tuple(
        TemplateResult(
            template_id=str(names[i]),
            volume=int(volume[i]),
            holdout=int(holdout[i]),
            accuracy=float(hits[i] / holdout[i]),
            seconds_saved=float(holdout_s[i] / holdout[i] - treatment_s[i] / treatment[i]),
        )
        for i in top[enough]
    )
    return results, int(np.sum(~enough))


def _comparison_row(comparison: Comparison | None, *, a: str, b: str) -> Row:
    if comparison is None:
        return dict.fromkeys((a, b, "saved_s", "low_s", "high_s", "t", "degrees", "p"))
    return {
        a: comparison.mean_a,
        b: comparison.mean_b,
        "saved_s": comparison.difference,
        "low_s": comparison.low,
        "high_s": comparison.high,
        "t": comparison.t,
        "degrees": comparison.degrees,
        "p": comparison.p,
    }


def _utc(moment: datetime) -> np.datetime64:
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")
