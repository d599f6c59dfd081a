"""When to train again, from a real log of events."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from heliostat.serve.events import EventLog
from jobs.support_templates.events import FEEDBACK, HOLDOUT, PREDICTION, TREATMENT
from jobs.support_templates.label_map import LabelMap
from jobs.support_templates.lifecycle import RetrainConfig
from jobs.support_templates.lifecycle_report import lifecycle_report

MAP = LabelMap(tuple("abcdefgh"), datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    opened = EventLog(str(tmp_path / "events.db"))
    yield opened
    opened.close()


def keep(
    log: EventLog, number: int, chosen: str | None, *, cohort: str = HOLDOUT, version: str = "v1"
) -> None:
    """A prediction that ranks a to h, and its feedback."""
    log.append_later(
        PREDICTION,
        f"{number}",
        {"cohort": cohort, "model_version": version, "template_ids": list(MAP.labels)},
    )
    log.append(FEEDBACK, f"{number}", {"chosen_template_id": chosen})


def report(
    log: EventLog, top5_at_release: float | None = 0.9, days_later: int = 0
) -> dict[str, Any]:
    """The report as of now, after what was kept, or of a later day."""
    found = lifecycle_report(
        log,
        MAP,
        model_version="v1",
        top5_at_release=top5_at_release,
        now=datetime.now(UTC) + timedelta(days=days_later),
        config=RetrainConfig(min_holdout_selections=10),
    )
    return dict(found)


def test_accuracy_is_that_of_the_version_in_the_holdout(log: EventLog) -> None:
    for number in range(20):
        keep(log, number, "a" if number < 17 else "h")
    for number in range(20, 40):
        keep(log, number, "h", cohort=TREATMENT)
    for number in range(40, 60):
        keep(log, number, "h", version="v0")
    keep(log, 60, None)
    found = report(log)
    assert found["selections"] == 60
    assert found["holdout_selections"] == 20
    assert found["top5"] == pytest.approx(0.85)
    assert found["should_retrain"] is True
    assert "5.0 points below 90.0% at release" in found["reasons"][0]
    assert report(log, top5_at_release=0.87)["should_retrain"] is False
    assert report(log, top5_at_release=None)["should_retrain"] is False


def test_few_selections_in_the_holdout_leave_accuracy_open(log: EventLog) -> None:
    for number in range(9):
        keep(log, number, "h")
    found = report(log)
    assert (found["top5"], found["should_retrain"]) == (None, False)


def test_templates_outside_the_map_are_listed_by_volume_and_old_ones_forgotten(
    log: EventLog,
) -> None:
    for number, chosen in enumerate(["x", "y", "y", *"a" * 37]):
        keep(log, number, chosen, cohort=TREATMENT)
    found = report(log)
    assert list(found["new_templates"].items()) == [("y", 2), ("x", 1)]
    assert found["out_of_map_rate"] == pytest.approx(0.075)
    assert found["should_retrain"] is True
    later = report(log, days_later=8)
    assert (later["selections"], later["out_of_map_rate"]) == (0, None)
    assert later["should_retrain"] is False


def test_feedback_for_suggestions_that_nobody_made_is_counted_and_counts_for_nothing(
    log: EventLog,
) -> None:
    for number in range(100):
        keep(log, number, "a")
    for number in range(6):
        log.append(FEEDBACK, f"invented-{number}", {"chosen_template_id": "zzz"})
    found = report(log)
    assert found["unknown_suggestions"] == 6
    assert (found["selections"], found["out_of_map_rate"]) == (100, 0.0)
    assert found["new_templates"] == {}
    assert found["should_retrain"] is False
