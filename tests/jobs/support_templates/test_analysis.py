"""The analysis command: from two logs to a page."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from heliostat.errors import DataError
from heliostat.serve.events import EventLog
from jobs.support_templates.analysis import main, parse_pair, read_log
from jobs.support_templates.event_sim import EventSimConfig, simulated_events
from jobs.support_templates.events import FEEDBACK, FEEDBACK_SCHEMA, PREDICTION, PREDICTION_SCHEMA


@pytest.fixture
def events(tmp_path: Path) -> str:
    """Events of half a year, as an endpoint would have kept them."""
    place = tmp_path / "events.db"
    EventLog(str(place)).close()
    tables = simulated_events(EventSimConfig(predictions=4000, seed=1))
    rows = [
        (kind, row.pop("suggestion_id"), row.pop("at").isoformat(), json.dumps(row))
        for kind, table in zip((PREDICTION, FEEDBACK), tables, strict=True)
        for row in table.to_pylist()
    ]
    with sqlite3.connect(place) as connection:
        connection.executemany("insert or ignore into events values (?, ?, ?, ?)", rows)
    connection.close()
    return str(place)


def test_the_page_shows_weeks_templates_and_counts(
    events: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(events, out=tmp_path / "report")
    assert str(tmp_path / "report") in capsys.readouterr().out
    page = (tmp_path / "report" / "index.html").read_text()
    assert all(text in page for text in ("Selection time by week", "template-000", "seconds saved"))


def test_events_come_back_in_the_schemas_of_the_analysis(events: str) -> None:
    predictions, feedback = read_log(events)
    assert predictions.schema == PREDICTION_SCHEMA
    assert feedback.schema == FEEDBACK_SCHEMA
    assert len(predictions) == 4000


def test_a_missing_log_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_log(str(tmp_path / "absent.db"))


def test_a_user_mistake_ends_in_exit_code_2(
    events: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(events, out=tmp_path, compare=["a,b"])
    assert stopped.value.code == 2
    assert "OLD,NEW,START" in capsys.readouterr().err


def test_a_pair_of_versions_is_parsed() -> None:
    pair = parse_pair("old,new,2026-03-01T00:00:00+00:00")
    assert (pair.old, pair.new, pair.start.year) == ("old", "new", 2026)
