"""The log of events: once each, durable, shared by processes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from heliostat.errors import ConfigError
from heliostat.serve.events import EventLog, EventsAway, RepeatedEvent


def test_the_first_event_of_an_id_is_kept(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "events.db"))
    log.append("feedback", "a", {"n": 1})
    with pytest.raises(RepeatedEvent):
        log.append("feedback", "a", {"n": 2})
    log.append("prediction", "a", {"n": 3})
    assert [row.body for row in log.rows("feedback")] == [{"n": 1}]
    log.close()


def test_events_for_later_are_there_when_they_are_read_and_in_order(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "sub" / "events.db"))
    for number in range(100):
        log.append_later("prediction", f"{number}", {"n": number})
    assert [row.body["n"] for row in log.rows("prediction")] == list(range(100))
    assert not list(log.rows("prediction", datetime.now(UTC) + timedelta(minutes=1)))
    log.close()


def test_what_was_confirmed_survives_kill_9(tmp_path: Path) -> None:
    place = tmp_path / "events.db"
    code = (
        "import sys, os, signal\n"
        "from heliostat.serve.events import EventLog\n"
        "log = EventLog(sys.argv[1])\n"
        "log.append('feedback', 'kept', {'n': 1})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, str(place)], env=environment)
    assert done.returncode == -signal.SIGKILL
    log = EventLog(str(place))
    assert [row.id for row in log.rows("feedback")] == ["kept"]
    with pytest.raises(RepeatedEvent):
        log.append("feedback", "kept", {})
    log.close()


def test_what_waits_for_a_database_that_is_away_is_kept_once_it_is_back(tmp_path: Path) -> None:
    place = tmp_path / "events.db"
    log = EventLog(str(place))
    log.append("prediction", "a", {"n": 0})
    other = sqlite3.connect(place)
    other.execute("ALTER TABLE events RENAME TO away")
    with pytest.raises(EventsAway):
        log.append("feedback", "a", {"n": 1})
    with pytest.raises(EventsAway):
        list(log.rows("prediction"))
    for number in range(3):
        log.append_later("prediction", f"later-{number}", {"n": number})
    log.flush()
    other.execute("ALTER TABLE away RENAME TO events")
    other.close()
    assert [row.id for row in log.rows("prediction")] == ["a", "later-0", "later-1", "later-2"]
    log.close()


def test_events_whose_commit_lost_its_answer_do_not_hold_up_those_after_them(
    tmp_path: Path,
) -> None:
    log = EventLog(str(tmp_path / "events.db"))
    log.append("prediction", "b", {"n": 1})
    for id_ in "abc":
        log.append_later("prediction", id_, {"n": 2})
    found = {row.id: row.body["n"] for row in log.rows("prediction")}
    assert found == {"a": 2, "b": 1, "c": 2}
    log.close()


def test_answers_come_with_what_they_answer(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path / "events.db"))
    log.append("prediction", "a", {"n": 1})
    log.append("prediction", "unanswered", {"n": 2})
    log.append("feedback", "a", {"n": 3})
    log.append("feedback", "invented", {"n": 4})
    since = datetime.now(UTC) - timedelta(days=1)
    found = [(event.id, before) for event, before in log.answers("feedback", "prediction", since)]
    assert found == [("a", {"n": 1}), ("invented", None)]
    assert list(log.answers("feedback", "prediction", datetime.now(UTC))) == []
    log.close()


def test_a_place_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(ConfigError, match="cannot be opened"):
        EventLog(str(tmp_path / "folder.db"))
