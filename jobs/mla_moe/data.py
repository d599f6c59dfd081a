"""The tables that mla_moe reads, and its streams: windows to train on, all rows to measure on.

Python sources are bytes, so the vocabulary is 256. Between two files stands the byte 0, which no
source holds. Of the rows of the test side every so-manieth is set aside as validation: it may be
looked at during training and in a search; the others only measure the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from heliostat.data.stream import PackedStream, Sample
from heliostat.data.table import Table
from heliostat.runs.inputs import Input
from heliostat.runs.run import Run
from heliostat.storage import Location
from jobs.corpora.python_sources import Collection, python_sources
from jobs.mla_moe.config import DataConfig


@dataclass(frozen=True)
class Corpus:
    """The two sides."""

    train: Location
    test: Location
    inputs: tuple[Input, ...]


def open_corpus(config: DataConfig, run: Run) -> Corpus:
    """Prepare the sources, or open the tables that are named."""
    if config.train is not None and config.test is not None:
        owned = Input("text", "real", f"tables {config.train} and {config.test}", "of their owner")
        return Corpus(Location.of(config.train), Location.of(config.test), (owned,))
    collection: Collection = (
        "transformers" if config.collection == "transformers" else "standard_library"
    )
    sides = [
        python_sources(run.cache, side, collection=collection, workers=config.preparation_workers)
        for side in ("train", "test")
    ]
    what = (
        "the standard library" if collection == "standard_library" else "the package transformers"
    )
    licence = "PSF-2.0" if collection == "standard_library" else "Apache-2.0"
    origin = Input("text", "real", f"Python sources of {what}, as bytes", licence)
    return Corpus(sides[0].location, sides[1].location, (origin,))


def fingerprint(corpus: Corpus) -> str:
    """Stands for what was learnt from."""
    return Table.open(corpus.train).fingerprint


@dataclass(frozen=True)
class HeldOutRows:
    """Rows of the test side: every `stride`-th one as validation, or all the others as test."""

    location: Location
    length: int
    validation_rows: int
    is_validation: bool
    limit: int | None = None
    """Use only so many, spread evenly."""
    targets: str | None = None
    """Column that says which tokens are targets; None: all."""
    end_of_text: int = 0
    """Token between documents."""

    @property
    def epoch_size(self) -> int:
        """How many there are."""
        return len(self._rows)

    @property
    def fingerprint(self) -> str:
        """Stands for the text and for which rows these are."""
        kind = "validation" if self.is_validation else "test"
        return f"{self._packed.fingerprint}:{kind}:{self.validation_rows}:{self.epoch_size}"

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The rows at these positions."""
        rows = self._rows
        return self._packed.samples([rows[position % len(rows)] for position in positions])

    @cached_property
    def _packed(self) -> PackedStream:
        return PackedStream(
            self.location,
            self.length,
            seed=0,
            end_of_text=self.end_of_text,
            pad=None,
            shuffle=False,
            targets=self.targets,
        )

    @cached_property
    def _rows(self) -> list[int]:
        total = self._packed.epoch_size
        stride = max(2, total // self.validation_rows)
        rows = list(range(0, total, stride)[: self.validation_rows])
        if not self.is_validation:
            validation = set(rows)
            rows = [row for row in range(total) if row not in validation]
        if self.limit is None or self.limit >= len(rows):
            return rows
        return [rows[index * len(rows) // self.limit] for index in range(self.limit)]

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}
