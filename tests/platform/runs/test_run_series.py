"""Metric lines: crash-safe, rewound by resumes, compacted to one table."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from heliostat.runs.series import MetricsLog, Series, read_series, write_metrics_table
from heliostat.storage import Location


def test_what_is_logged_is_read_back_even_without_a_close(tmp_path: Path) -> None:
    folder = Location.of(tmp_path)
    log = MetricsLog(folder, attempt=1)
    log.write({"loss": 1.5, "lr": 1e-3}, step=1, stage="dapt")
    log.write({"loss": 1.25}, step=2, stage="dapt")
    series = read_series(folder)["dapt"]
    assert series["loss"].steps == [1, 2]
    assert series["loss"].values == [1.5, 1.25]
    assert series["lr"].values == [1e-3]
    log.close()


def test_values_that_json_cannot_hold_survive(tmp_path: Path) -> None:
    log = MetricsLog(Location.of(tmp_path), attempt=1)
    log.write({"a": math.nan, "b": math.inf, "c": -math.inf}, step=1, stage="s")
    log.close()
    (lines,) = (tmp_path / "metrics").iterdir()
    assert "NaN" not in lines.read_text()
    series = read_series(Location.of(tmp_path))["s"]
    assert math.isnan(series["a"].values[0])
    assert (series["b"].values, series["c"].values) == ([math.inf], [-math.inf])


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    log = MetricsLog(Location.of(tmp_path), attempt=1)
    log.write({"loss": 1.0}, step=1, stage="s")
    log.write({"loss": 0.5}, step=2, stage="s")
    log.close()
    (lines,) = (tmp_path / "metrics").iterdir()
    lines.write_bytes(lines.read_bytes()[:-7])
    assert read_series(Location.of(tmp_path))["s"]["loss"].steps == [1]


def test_a_later_attempt_undoes_what_it_does_again(tmp_path: Path) -> None:
    folder = Location.of(tmp_path)
    first = MetricsLog(folder, attempt=1)
    for step in range(1, 8):
        first.write({"loss": 10.0 + step}, step=step, stage="s")
    first.write({"eval/loss": 3.0}, step=2, stage="s")
    first.close()
    second = MetricsLog(folder, attempt=2)
    for step in (5, 6):
        second.write({"loss": 20.0 + step}, step=step, stage="s")
    second.close()
    series = read_series(folder)["s"]
    assert series["loss"].steps == [1, 2, 3, 4, 5, 6]
    assert series["loss"].values == [11, 12, 13, 14, 25, 26]
    assert series["loss"].attempts == [1, 1, 1, 1, 2, 2]
    assert series["eval/loss"].steps == [2]


@given(st.lists(st.integers(0, 30), max_size=60))
def test_steps_of_a_series_always_rise_and_end_at_the_last_logged(steps: list[int]) -> None:
    series = Series()
    for index, step in enumerate(steps):
        series.add(step=step, value=float(index), at=0.0, attempt=1)
    assert series.steps == sorted(set(series.steps))
    if steps:
        assert series.steps[-1] == steps[-1]
        assert series.values[-1] == len(steps) - 1


def test_the_table_has_a_row_a_step_and_a_column_a_metric(tmp_path: Path) -> None:
    folder = Location.of(tmp_path)
    log = MetricsLog(folder, attempt=1)
    log.write({"loss": 2.0, "lr": 0.1}, step=1, stage="a")
    log.write({"loss": 1.0}, step=2, stage="a")
    log.write({"step": 5.0}, step=1, stage="b")
    log.close()
    write_metrics_table(folder)
    table = pq.read_table(tmp_path / "metrics.parquet")
    assert table.column_names == ["stage", "step", "time", "attempt", "loss", "lr", "metric/step"]
    assert table.column("loss").to_pylist() == [2.0, 1.0, None]
    assert table.column("stage").to_pylist() == ["a", "a", "b"]
    now = datetime.now(tz=UTC)
    assert all(abs((at - now).total_seconds()) < 60 for at in table.column("time").to_pylist())


def test_a_run_without_metrics_has_an_empty_table(tmp_path: Path) -> None:
    write_metrics_table(Location.of(tmp_path))
    assert pq.read_table(tmp_path / "metrics.parquet").num_rows == 0
