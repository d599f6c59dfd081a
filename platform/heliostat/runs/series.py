"""Metrics over steps: how they are logged while a run works, and read back as series.

A writer appends one JSON line a call to a file of its own, named by the attempt of the run, so a
process that is killed loses at most the line it was writing. An object store cannot append: there
lines are collected and the growing file is put again every few seconds by a thread, so that logging
never waits for storage.

Reading follows what a resumed run does: when a metric of a stage is logged at a step again, that
value and every earlier one at or after the step were undone, and are dropped.
"""

from __future__ import annotations

import io
import json
import logging
import math
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliostat.errors import StorageError, UserError
from heliostat.storage import Location

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.parquet"
LINES_FOLDER = "metrics"


@dataclass
class Series:
    """One metric of one stage, in order of steps."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """Seconds since 1970 at which each value was logged."""
    attempts: list[int] = field(default_factory=list)

    def add(self, step: int, value: float, at: float, attempt: int) -> None:
        """Append a value; what was logged at this step or after it before is undone."""
        while self.steps and self.steps[-1] >= step:
            for column in (self.steps, self.values, self.times, self.attempts):
                column.pop()
        self.steps.append(step)
        self.values.append(value)
        self.times.append(at)
        self.attempts.append(attempt)


SeriesByStage = dict[str, dict[str, Series]]
"""Stage, then metric, to its series."""


class MetricsLog:
    """A writer of metric lines; one for each process that logs."""

    def __init__(
        self, run_folder: Location, attempt: int, flush_s: float = 15.0, rotate_bytes: int = 1 << 20
    ) -> None:
        writer = f"attempt-{attempt:04d}-{uuid.uuid4().hex[:8]}"
        folder = run_folder / LINES_FOLDER
        self._attempt = attempt
        self._sink: _LocalLines | _RemoteLines
        if folder.is_local:
            self._sink = _LocalLines((folder / f"{writer}.jsonl").local_path)
        else:
            self._sink = _RemoteLines(folder, writer, flush_s, rotate_bytes)

    def write(self, metrics: Mapping[str, float], step: int, stage: str) -> None:
        """Append the metrics of one step of a stage."""
        values = {name: _encode(float(value)) for name, value in metrics.items()}
        line = {"time": time.time(), "attempt": self._attempt, "stage": stage, "step": step}
        self._sink.append(json.dumps({**line, "metrics": values}) + "\n")

    def flush(self) -> None:
        """Bring every line so far to storage."""
        self._sink.flush()

    def close(self) -> None:
        """Flush and end; a closed log takes no more lines."""
        self._sink.close()


class _LocalLines:
    """Lines in a local file, handed to the operating system one by one."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._lock = threading.Lock()

    def append(self, line: str) -> None:
        with self._lock:
            self._file.write(line)

    def flush(self) -> None:
        with self._lock:
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class _RemoteLines:
    """Lines collected in memory and put as whole files by a thread."""

    def __init__(self, folder: Location, writer: str, flush_s: float, rotate_bytes: int) -> None:
        self._folder = folder
        self._writer = writer
        self._flush_s = flush_s
        self._rotate_bytes = rotate_bytes
        self._lines: list[str] = []
        self._unsaved = False
        self._part = 1
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_saving, name="metrics-log", daemon=True)
        self._thread.start()

    def append(self, line: str) -> None:
        with self._lock:
            self._lines.append(line)
            self._unsaved = True

    def flush(self) -> None:
        with self._saving:
            with self._lock:
                if not self._unsaved:
                    return
                saved = len(self._lines)
                text = "".join(self._lines)
                self._unsaved = False
            try:
                (self._folder / f"{self._writer}-{self._part:05d}.jsonl").write_text(text)
            except StorageError:
                with self._lock:
                    self._unsaved = True
                raise
            if len(text) >= self._rotate_bytes:
                with self._lock:
                    self._lines = self._lines[saved:]
                self._part += 1

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self.flush()

    def _keep_saving(self) -> None:
        failing = False
        while not self._closed.wait(self._flush_s):
            try:
                self.flush()
                failing = False
            except (StorageError, UserError) as error:
                if not failing:
                    logger.warning("metrics are kept in memory until storage is back: %s", error)
                failing = True


def read_series(run_folder: Location) -> SeriesByStage:
    """Every metric of a run over all attempts, without what resumes have undone."""
    found: SeriesByStage = {}
    rows = [row for file in (run_folder / LINES_FOLDER).list() for row in _lines(file)]
    for row in sorted(rows, key=lambda row: (row.attempt, row.time)):
        stage = found.setdefault(row.stage, {})
        for name, value in row.metrics.items():
            series = stage.setdefault(name, Series())
            series.add(step=row.step, value=value, at=row.time, attempt=row.attempt)
    return found


def write_metrics_table(run_folder: Location) -> None:
    """Compact the metric lines into `metrics.parquet`: one row a stage and step."""
    import pyarrow.parquet as pq

    target = io.BytesIO()
    pq.write_table(_table(read_series(run_folder)), target, compression="zstd")
    (run_folder / METRICS_NAME).write_bytes(target.getvalue())


@dataclass(frozen=True)
class _Row:
    time: float
    attempt: int
    stage: str
    step: int
    metrics: dict[str, float]


def _lines(file: Location) -> Iterable[_Row]:
    lines = file.read_text().split("\n")
    # What follows the last newline is a line that was being written when its process died.
    for line in lines[:-1]:
        row = json.loads(line)
        metrics = {name: float(value) for name, value in row["metrics"].items()}
        yield _Row(row["time"], row["attempt"], row["stage"], row["step"], metrics)


def _table(series: SeriesByStage) -> pa.Table:
    import pyarrow as pa

    rows: dict[tuple[str, int], dict[str, Any]] = {}
    names: set[str] = set()
    for stage, metrics in series.items():
        for name, points in metrics.items():
            names.add(name)
            for index, step in enumerate(points.steps):
                row = rows.setdefault((stage, step), {"stage": stage, "step": step})
                # Metrics of one step may stem from two attempts; the row tells of the later one.
                row["time"] = max(row.get("time", 0), int(points.times[index] * 1000))
                row["attempt"] = max(row.get("attempt", 0), points.attempts[index])
                row[f"metric:{name}"] = points.values[index]
    columns = [
        ("stage", "stage", pa.string()),
        ("step", "step", pa.int64()),
        ("time", "time", pa.timestamp("ms", tz="UTC")),
        ("attempt", "attempt", pa.int32()),
    ]
    fixed = {name for name, _, _ in columns}
    for name in sorted(names):
        shown = f"metric/{name}" if name in fixed else name
        columns.append((shown, f"metric:{name}", pa.float64()))
    arrays = [pa.array([row.get(key) for row in rows.values()], kind) for _, key, kind in columns]
    return pa.Table.from_arrays(arrays, names=[name for name, _, _ in columns])


def _encode(value: float) -> float | str:
    """JSON has no infinities and no NaN; `float()` reads their names back."""
    return value if math.isfinite(value) else str(value)
