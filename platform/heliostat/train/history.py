"""The metrics of a training, exact over restarts.

Rows are kept with the checkpoints: before a checkpoint is committed, the rows since the one before
are written as a file of their own, never changed afterwards. A restart drops what came after the
checkpoint that it goes on from, so the history holds every step once, whatever died in between.
"""

from __future__ import annotations

import json
import re
from typing import Any

from heliostat.storage import Location
from heliostat.train.monitor import Row
from heliostat.train.monitor_link import MonitorLink

CHUNK = re.compile(r"rows-(\d{8,})-(\d{8,})\.json")


class History:
    """Rank 0's side; on the other ranks (`link` is None) it keeps nothing."""

    def __init__(self, folder: Location, step: int, link: MonitorLink | None) -> None:
        self._folder = folder
        self._link = link
        self._from = step
        self._rows: list[Row] = []
        self._unwritten: list[tuple[str, list[Row]]] = []
        if link is not None:
            for chunk in folder.list():
                match = CHUNK.fullmatch(chunk.name)
                if match and int(match.group(2)) > step:
                    chunk.delete()

    def add(self, row: Row) -> None:
        """Keep a row, and show it to the driver."""
        if self._link is not None:
            self._rows.append(row)
            self._link.send(row)

    def cut(self, step: int) -> None:
        """End a file of rows at the checkpoint of `step`; `write` writes it."""
        if self._rows:
            name = f"rows-{self._from:08d}-{step:08d}.json"
            self._unwritten.append((name, self._rows))
            self._from, self._rows = step, []

    def write(self) -> None:
        """Write what was cut; what cannot be written is kept for the next call."""
        while self._unwritten:
            name, rows = self._unwritten[0]
            (self._folder / name).write_text(json.dumps(rows))
            del self._unwritten[0]


def read_history(folder: Location) -> list[dict[str, Any]]:
    """All rows of a training, in order: steps with `loss`, evaluations with `eval/...`."""
    rows: list[dict[str, Any]] = []
    for chunk in sorted(folder.list(), key=lambda entry: entry.name):
        if CHUNK.fullmatch(chunk.name):
            rows += json.loads(chunk.read_text())
    return rows
