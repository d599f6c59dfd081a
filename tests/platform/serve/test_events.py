"""The log of events: once each, durable, shared by processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from heliostat.errors import ConfigError
from heliostat.serve.events import EventLog, RepeatedEvent


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


def test_a_place_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(ConfigError, match="cannot be opened"):
        EventLog(str(tmp_path / "folder.db"))
