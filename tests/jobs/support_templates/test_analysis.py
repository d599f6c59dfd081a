"""The analysis command: from two logs to a page."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from heliostat.errors import DataError
from jobs.support_templates.analysis import main, parse_pair, read_log
from jobs.support_templates.event_sim import EventSimConfig, simulated_events
from jobs.support_templates.events import FEEDBACK_SCHEMA, PREDICTION_SCHEMA


@pytest.fixture
def logs(tmp_path: Path) -> tuple[Path, Path]:
    predictions, feedback = simulated_events(EventSimConfig(predictions=4000, seed=1))
    files = (tmp_path / "predictions.parquet", tmp_path / "feedback.parquet")
    pq.write_table(predictions, files[0])
    pq.write_table(feedback, files[1])
    return files


def test_the_page_shows_weeks_templates_and_counts(
    logs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(*logs, out=tmp_path / "report")
    assert str(tmp_path / "report") in capsys.readouterr().out
    page = (tmp_path / "report" / "index.html").read_text()
    assert all(text in page for text in ("Selection time by week", "template-000", "seconds saved"))


def test_a_log_without_a_column_is_refused_by_name(logs: tuple[Path, Path]) -> None:
    table = pq.read_table(logs[1]).drop_columns(["edited"])
    pq.write_table(table, logs[1])
    with pytest.raises(DataError, match="no column edited"):
        read_log(logs[1], FEEDBACK_SCHEMA)


def test_a_missing_log_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_log(tmp_path / "absent.parquet", PREDICTION_SCHEMA)


def test_a_user_mistake_ends_in_exit_code_2(
    logs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(*logs, out=tmp_path, compare=["a,b"])
    assert stopped.value.code == 2
    assert "OLD,NEW,START" in capsys.readouterr().err


def test_a_pair_of_versions_is_parsed() -> None:
    pair = parse_pair("old,new,2026-03-01T00:00:00+00:00")
    assert (pair.old, pair.new, pair.start.year) == ("old", "new", 2026)
