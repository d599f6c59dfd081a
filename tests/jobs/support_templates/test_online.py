"""The online analysis: hand-counted logs, and the truth of simulated ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from heliostat.errors import DataError
from jobs.support_templates.event_sim import (
    NEW_VERSION,
    OLD_VERSION,
    EventSimConfig,
    simulated_events,
)
from jobs.support_templates.events import FEEDBACK_SCHEMA, PREDICTION_SCHEMA, joined
from jobs.support_templates.online import (
    AnalysisConfig,
    OnlineReport,
    VersionPair,
    analyse,
    saved_time_rows,
    template_rows,
    version_rows,
)

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)


def prediction(name: str, at: datetime, cohort: str, ranking: Sequence[str]) -> dict[str, object]:
    return {
        "suggestion_id": name,
        "at": at,
        "case_id": f"case of {name}",
        "advocate_id": None,
        "cohort": cohort,
        "model_version": "v1",
        "label_map_version": "m",
        "template_ids": list(ranking),
        "probabilities": [1.0 / (i + 2) for i in range(len(ranking))],
        "abstained": not ranking,
    }


def feedback(name: str, chosen: str | None, ms: int) -> dict[str, object]:
    return {
        "suggestion_id": name,
        "at": MONDAY,
        "chosen_template_id": chosen,
        "selection_time_ms": ms,
        "edited": False,
    }


def tables(
    predictions: list[dict[str, object]], answers: list[dict[str, object]]
) -> tuple[pa.Table, pa.Table]:
    return (
        pa.Table.from_pylist(predictions, schema=PREDICTION_SCHEMA),
        pa.Table.from_pylist(answers, schema=FEEDBACK_SCHEMA),
    )


def small_logs() -> tuple[pa.Table, pa.Table]:
    sunday, next_monday = MONDAY + timedelta(days=6, hours=23), MONDAY + timedelta(days=7)
    return tables(
        [
            prediction("a", MONDAY, "treatment", ["x", "y", "z"]),
            prediction("b", sunday, "holdout", ["y", "x"]),
            prediction("c", next_monday, "treatment", []),
            prediction("d", next_monday, "holdout", ["x"]),
            prediction("e", next_monday, "treatment", ["x"]),
            prediction("a", next_monday, "holdout", ["z"]),
        ],
        [
            feedback("b", "x", 2_500),
            feedback("a", "z", 1_000),
            feedback("a", "x", 9_000),
            feedback("nobody", "x", 1),
            feedback("c", "x", 4_000),
            feedback("d", None, 7_000),
        ],
    )


def test_selections_join_first_feedback_with_first_prediction() -> None:
    selections, _ = joined(*small_logs(), k=2)
    assert selections.template_id.tolist() == ["x", "z", "x"]
    assert selections.seconds.tolist() == [2.5, 1.0, 4.0]
    assert selections.is_held_out.tolist() == [True, False, False]
    assert selections.week.tolist() == ["2026-W02", "2026-W02", "2026-W03"]
    assert selections.is_hit.tolist() == [True, False, False]
    assert joined(*small_logs(), k=3)[0].is_hit.tolist() == [True, True, False]


def test_everything_left_out_is_counted() -> None:
    _, counts = joined(*small_logs(), k=5)
    assert (counts.predictions, counts.feedback, counts.selections) == (6, 6, 3)
    assert counts.repeated_predictions == 1
    assert counts.repeated_feedback == 1
    assert counts.unknown_suggestions == 1
    assert counts.no_template_chosen == 1


def test_abstentions_stay_in_the_treatment() -> None:
    report = analyse(*small_logs(), pairs=[], config=AnalysisConfig())
    assert (report.overall.holdout, report.overall.treatment) == (1, 2)
    assert report.overall.comparison is None
    assert [(w.period, w.holdout, w.treatment) for w in report.weeks] == [
        ("2026-W02", 1, 1),
        ("2026-W03", 0, 1),
    ]
    assert [row["saved_s"] for row in saved_time_rows(report)] == [None, None, None]


def test_empty_logs_make_an_empty_report() -> None:
    report = analyse(*tables([], []), pairs=[], config=AnalysisConfig())
    assert (report.counts.selections, report.weeks, report.templates, report.trend) == (
        0,
        (),
        (),
        None,
    )


@pytest.fixture(scope="module")
def simulated() -> tuple[pa.Table, pa.Table]:
    return simulated_events(EventSimConfig(seed=3, holdout_per_10_000=1_000))


@pytest.fixture(scope="module")
def report(simulated: tuple[pa.Table, pa.Table]) -> OnlineReport:
    return analyse(
        *simulated,
        pairs=[VersionPair(OLD_VERSION, NEW_VERSION, MONDAY)],
        config=AnalysisConfig(),
    )


def test_saved_seconds_are_found_in_every_week(report: OnlineReport) -> None:
    """Ten seconds saved on a hit, at an accuracy of about 55 %: between four and seven seconds."""
    assert [week.period for week in report.weeks] == [f"2026-W{w:02d}" for w in (2, 3, 4, 5)]
    for saved in (*report.weeks, report.overall):
        assert saved.comparison is not None
        assert saved.comparison.low > 0
        assert 4 < saved.comparison.difference < 7
        assert saved.comparison.mean_a == pytest.approx(19.0, abs=1.5)


def test_weekly_interval_is_that_of_the_raw_columns(
    simulated: tuple[pa.Table, pa.Table], report: OnlineReport
) -> None:
    predictions, answers = (table.to_pylist() for table in simulated)
    cohorts: dict[str, list[float]] = {"holdout": [], "treatment": []}
    for made, given in zip(predictions, answers, strict=True):
        assert made["suggestion_id"] == given["suggestion_id"]
        if given["chosen_template_id"] and made["at"] < MONDAY + timedelta(days=7):
            cohorts[made["cohort"]].append(given["selection_time_ms"] / 1000)
    theirs = stats.ttest_ind(cohorts["holdout"], cohorts["treatment"], equal_var=False)
    row = saved_time_rows(report)[0]
    assert row["p"] == pytest.approx(theirs.pvalue, rel=1e-6)
    interval = theirs.confidence_interval(0.95)
    assert (row["low_s"], row["high_s"]) == pytest.approx((interval.low, interval.high))
    assert (row["holdout"], row["treatment"]) == tuple(len(values) for values in cohorts.values())


def test_better_version_is_faster_within_its_two_weeks(
    simulated: tuple[pa.Table, pa.Table], report: OnlineReport
) -> None:
    (result,) = report.versions
    assert result.end == MONDAY + timedelta(days=14)
    assert result.comparison.difference == pytest.approx(1.0, abs=0.6)
    assert result.comparison.p < 0.01
    predictions, answers = (table.to_pylist() for table in simulated)
    treated = sum(
        made["cohort"] == "treatment"
        and made["at"] < result.end
        and bool(given["chosen_template_id"])
        for made, given in zip(predictions, answers, strict=True)
    )
    (row,) = version_rows(report)
    assert int(row["old_selections"] or 0) + int(row["new_selections"] or 0) == treated


def test_versions_without_selections_are_named(simulated: tuple[pa.Table, pa.Table]) -> None:
    with pytest.raises(DataError, match=r"'v3' have \d+ and 0 .*'v1', 'v2'"):
        analyse(*simulated, pairs=[VersionPair("v1", "v3", MONDAY)], config=AnalysisConfig())


def test_better_predicted_templates_save_more(report: OnlineReport) -> None:
    assert report.trend is not None
    assert report.trend.z > 0
    assert report.trend.p < 0.01
    assert report.trend.n == len(report.templates)
    volumes = [template.volume for template in report.templates]
    assert volumes == sorted(volumes, reverse=True)
    assert all(template.holdout >= 5 for template in report.templates)


def test_template_figures_agree_with_a_slow_loop(
    simulated: tuple[pa.Table, pa.Table], report: OnlineReport
) -> None:
    predictions, answers = (table.to_pylist() for table in simulated)
    name = report.templates[2].template_id
    hits, seconds = [], {"holdout": [], "treatment": []}
    for made, given in zip(predictions, answers, strict=True):
        if given["chosen_template_id"] == name:
            seconds[made["cohort"]].append(given["selection_time_ms"] / 1000)
            if made["cohort"] == "holdout":
                hits.append(name in made["template_ids"][:5])
    row = template_rows(report)[2]
    assert row["accuracy"] == pytest.approx(np.mean(hits))
    assert row["seconds_saved"] == pytest.approx(
        np.mean(seconds["holdout"]) - np.mean(seconds["treatment"])
    )
    assert row["volume"] == len(seconds["holdout"]) + len(seconds["treatment"])


def test_only_the_top_templates_by_volume_are_looked_at(
    simulated: tuple[pa.Table, pa.Table], report: OnlineReport
) -> None:
    few = analyse(*simulated, pairs=[], config=AnalysisConfig(top_templates=10))
    assert few.templates == report.templates[:10]
    strict = analyse(
        *simulated, pairs=[], config=AnalysisConfig(min_holdout_selections=10**6, top_templates=10)
    )
    assert (strict.templates, strict.templates_left_out, strict.trend) == ((), 10, None)


def test_a_useless_classifier_shows_no_effect() -> None:
    logs = simulated_events(EventSimConfig(suggested_s=19.0, holdout_per_10_000=1_000))
    report = analyse(*logs, pairs=[], config=AnalysisConfig())
    assert report.overall.comparison is not None
    assert report.trend is not None
    assert report.overall.comparison.p > 0.01
    assert report.trend.p > 0.01


def test_logs_that_break_their_schema_are_refused() -> None:
    predictions, answers = small_logs()
    with pytest.raises(DataError, match="no column 'cohort'"):
        joined(predictions.drop_columns("cohort"), answers, k=5)
    with pytest.raises(DataError, match="negative selection_time_ms"):
        joined(*tables([], [feedback("a", "x", -1)]), k=5)
    with pytest.raises(DataError, match="cohorts"):
        joined(*tables([prediction("a", MONDAY, "other", [])], []), k=5)
    nulls = pa.array([None] * len(answers), type=pa.int64())
    place = answers.schema.get_field_index("selection_time_ms")
    with pytest.raises(DataError, match="feedback log does not fit"):
        joined(predictions, answers.set_column(place, "selection_time_ms", nulls), k=5)
