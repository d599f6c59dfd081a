"""Streams: samples of a table at positions of an endless, deterministic sequence of epochs.

A position counts over epochs: `position // epoch_size` is the epoch. A stream keeps no cursor. What
lies at a position depends on the table, the seed and the layout only, and costs the same wherever
it is; that is what makes resuming exact on any number of workers (see `heliostat.data.reader`). A
stream is small and is pickled without its data; files are opened at first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from heliostat.data.packing import PackedStream
from heliostat.data.sample import Sample, rows_to_samples
from heliostat.data.source import Require, head_rows, kept_order, open_source, stream_fingerprint
from heliostat.data.table import Table
from heliostat.storage import Location

__all__ = ["PackedStream", "RowStream", "Sample", "Stream"]


@runtime_checkable
class Stream(Protocol):
    """Samples by position."""

    @property
    def epoch_size(self) -> int:
        """The number of samples in one epoch; the same in every epoch."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for streams that give the same samples at the same positions."""
        ...

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The samples at some positions; each has an `id` that is unique in its epoch."""
        ...


@dataclass(frozen=True)
class RowStream:
    """The rows of a table, each one sample. Without a column `id` the row number is the id."""

    location: Location
    seed: int
    shuffle: bool = True
    """False: rows come as they are stored, in every epoch."""
    head: int | None = None
    """Use the first so many rows of the table only."""
    require: Require = field(default_factory=dict, hash=False)
    """Metadata that the table must have."""

    @cached_property
    def table(self) -> Table:
        """The table behind the stream."""
        return open_source(self.location, self.require)

    @cached_property
    def epoch_size(self) -> int:
        """The number of rows."""
        return head_rows(self.table, self.head)

    @cached_property
    def fingerprint(self) -> str:
        """Stands for the content and the order."""
        seed = self.seed if self.shuffle else None
        return stream_fingerprint(self.table, self.epoch_size, seed, {"layout": "rows"})

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The rows at these positions."""
        rows = self._rows(positions)
        samples = rows_to_samples(self.table.take(rows))
        if "id" in self.table.schema.names:
            return samples
        return [{"id": int(row), **sample} for row, sample in zip(rows, samples, strict=True)]

    def _rows(self, positions: Sequence[int]) -> np.ndarray:
        epochs, within = np.divmod(np.asarray(positions, dtype=np.int64), self.epoch_size)
        rows = np.empty_like(within)
        for epoch in np.unique(epochs):
            order = kept_order(self.epoch_size, self.seed, int(epoch), self.shuffle)
            rows[epochs == epoch] = order.at(within[epochs == epoch])
        return rows

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}
