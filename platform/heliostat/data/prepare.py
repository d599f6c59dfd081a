"""Preparing a table from chunks of raw input, in parallel, once.

Each chunk becomes one shard, written in one step, then recorded, so memory stays at a few batches
for each worker, and a preparation that was killed goes on with the chunks that are missing. The
table lies in a folder named by its key; with the same key it is found again without starting Ray.
Shards are in the order of the chunks, whichever worker finishes first.

Ray Data spreads the chunks; with `concurrency=0` everything happens in this process.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from heliostat.data.chunks import (
    PARTS,
    Outcome,
    Part,
    Rejected,
    Transform,
    Work,
    do_here,
    do_on_ray,
    finished_parts,
)
from heliostat.data.exclusive import only_one
from heliostat.data.key import PreparationKey, code_of, content_of
from heliostat.data.manifest import MANIFEST
from heliostat.data.table import Table, commit_table
from heliostat.errors import ConfigError
from heliostat.storage import Location, remove_temporaries

__all__ = [
    "Outcome",
    "PreparationKey",
    "Progress",
    "Rejected",
    "Transform",
    "code_of",
    "content_of",
    "log_progress",
    "prepare",
    "prepared_folder",
]

logger = logging.getLogger(__name__)
C = TypeVar("C")

PROGRESS_EVERY_S = 10.0


@dataclass(frozen=True)
class Progress:
    """How far a preparation has come."""

    name: str
    done: int
    """Chunks finished, those of an earlier attempt included."""
    chunks: int
    rows: int
    rejected: int
    rows_per_s: float
    """In this attempt."""


def log_progress(progress: Progress) -> None:
    """One line."""
    logger.info(
        "preparing %s: %d of %d chunks, %d rows, %d rejected, %.0f rows/s",
        progress.name,
        progress.done,
        progress.chunks,
        progress.rows,
        progress.rejected,
        progress.rows_per_s,
    )


def prepared_folder(name: str, output: Location, key: PreparationKey) -> Location:
    """Where the table with this name and key lies."""
    return output / f"{name}-{key.digest()}"


def prepare(
    name: str,
    inputs: Sequence[C],
    transform: Transform[C],
    output: Location,
    key: PreparationKey,
    concurrency: int,
    progress: Callable[[Progress], None] = log_progress,
    *,
    schema: pa.Schema,
    metadata: Mapping[str, str],
) -> Table:
    """The table that `transform` makes of the chunks `inputs`: found, completed or made.

    Args:
        name: begins the name of the table's folder.
        inputs: picklable descriptions of chunks, for example paths; each becomes one shard.
        transform: called with a chunk, yields record batches and `Rejected`; picklable.
        output: the folder that holds prepared tables.
        key: everything the rows depend on; another key is another table.
        concurrency: actors on the Ray cluster; 0 works in this process, without Ray.
        progress: called at the end and every `PROGRESS_EVERY_S` seconds or so.
        schema: of the batches.
        metadata: to keep with the table; `rejected` (counts by reason) and `key` are added.
    """
    if concurrency < 0:
        raise ConfigError(f"concurrency must be at least 0, not {concurrency}")
    folder = prepared_folder(name, output, key)
    if (folder / MANIFEST).exists():
        return Table.open(folder)
    with only_one(folder):
        if (folder / MANIFEST).exists():
            return Table.open(folder)
        remove_temporaries(folder)
        parts = finished_parts(folder, inputs)
        missing = {n: chunk for n, chunk in enumerate(inputs) if n not in parts}
        work = Work(folder, schema, transform)
        if missing:
            here = concurrency == 0
            coming = do_here(work, missing) if here else do_on_ray(work, missing, concurrency)
            report = _Reporter(name, len(inputs), parts, progress)
            for part in coming:
                parts[part.chunk] = part
                report.add(part)
            report.send()
        rejected = _rejected(parts)
        noted = {**metadata, "key": key.digest(), "rejected": json.dumps(rejected, sort_keys=True)}
        if rejected:
            logger.warning("%s: rows rejected: %s", name, noted["rejected"])
        shards = [parts[number].shard for number in sorted(parts) if parts[number].shard.rows]
        table = commit_table(folder, shards, schema, noted)
        (folder / PARTS).delete()
    return table


class _Reporter:
    """Counts, and calls `progress` not too often."""

    def __init__(
        self,
        name: str,
        chunks: int,
        parts: Mapping[int, Part],
        progress: Callable[[Progress], None],
    ) -> None:
        self.name, self.chunks, self.progress = name, chunks, progress
        self.done = len(parts)
        self.rows = self.earlier_rows = sum(part.shard.rows for part in parts.values())
        self.rejected = sum(_rejected(parts).values())
        self.began = self.sent = time.monotonic()

    def add(self, part: Part) -> None:
        """Count a finished chunk."""
        self.done += 1
        self.rows += part.shard.rows
        self.rejected += sum(part.rejected.values())
        if time.monotonic() - self.sent >= PROGRESS_EVERY_S:
            self.send()

    def send(self) -> None:
        """Tell how far it has come."""
        self.sent = time.monotonic()
        rate = (self.rows - self.earlier_rows) / max(self.sent - self.began, 1e-9)
        self.progress(Progress(self.name, self.done, self.chunks, self.rows, self.rejected, rate))


def _rejected(parts: Mapping[int, Part]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts.values():
        total.update(part.rejected)
    return dict(total)
