"""A run folder on S3: the same promises as on a local disk."""

from __future__ import annotations

import io
from typing import Any

import pyarrow.parquet as pq
import pytest

from heliostat.errors import UserError
from heliostat.runs.listing import list_runs
from heliostat.runs.lock import RunBusyError
from heliostat.runs.record import read_record
from heliostat.runs.series import MetricsLog, read_series
from heliostat.storage import Location


def test_a_run_on_s3_is_locked_resumed_and_recorded(start: Any, s3_bucket: Location) -> None:
    out = s3_bucket / "runs"
    calls: list[str] = []

    def work(folder: Location) -> dict[str, int]:
        calls.append(folder.name)
        (folder / "data.txt").write_text("data")
        return {"rows": 7}

    run = start("one", place=out)
    assert run.stage("prepare", 1, work) == {"rows": 7}
    run.log({"loss": 2.0}, step=1, stage="fit")
    with pytest.raises(RunBusyError):
        start("one", place=out, again=True)
    run.finish({}, "interrupted")
    with pytest.raises(UserError, match="exists"):
        start("one", place=out)

    with start("one", place=out, again=True) as run:
        assert run.stage("prepare", 1, work) == {"rows": 7}
        run.log({"loss": 1.0}, step=2, stage="fit")
        assert run.cache == out / ".cache"
        run.finish({"top1": 0.5})
    assert calls == ["prepare"]
    assert read_record(run.folder).status == "finished"
    table = pq.read_table(io.BytesIO((run.folder / "metrics.parquet").read_bytes()))
    assert table.column("loss").to_pylist() == [2.0, 1.0]
    (row,) = list_runs(out)
    assert (row.id, row.status, row.metrics) == ("one", "finished", {"top1": 0.5})


def test_metric_lines_reach_s3_without_a_close_and_in_parts(s3_bucket: Location) -> None:
    log = MetricsLog(s3_bucket, attempt=1, flush_s=3600, rotate_bytes=300)
    for step in range(20):
        log.write({"loss": float(step)}, step=step, stage="fit")
        log.flush()
    assert len((s3_bucket / "metrics").list()) > 3
    assert read_series(s3_bucket)["fit"]["loss"].values == [float(step) for step in range(20)]
    log.close()
