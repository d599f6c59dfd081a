"""Windows of fixed length drawn inside documents: a stream for training, and fixed ones to measure.

A window never crosses the end of a document. In the stream a document is drawn in proportion to how
many windows it has, then a place in it; what lies at a position depends on the table, the seed and
the position only, so a resumed training reads on exactly. A share of the windows may be synthetic
repeats: the first p tokens of the window repeated until it is full, with p uniform between
`SHORTEST_REPEAT` and half the window. A small model does not learn to copy from text alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from heliostat.data.sample import Sample
from heliostat.data.source import open_source, stream_fingerprint
from heliostat.data.table import Table
from heliostat.errors import DataError
from heliostat.storage import Location

SHORTEST_REPEAT = 8
"""Fewest tokens that a synthetic window repeats."""
_WORD = (1 << 64) - 1
_DRAW_VERSION = 1
"""Part of the stream's fingerprint; raise it when the same key would give other windows."""


@dataclass(frozen=True)
class WindowStream:
    """Random windows: samples with `id` (place in the epoch), `input_ids` and `labels`.

    An epoch has as many windows as fit side by side into the documents; they are drawn with
    replacement, and anew in every epoch.
    """

    location: Location
    length: int
    """Tokens of a window."""
    seed: int
    repeats: float = 0.0
    """Share of windows that are synthetic repeats."""

    def __post_init__(self) -> None:
        if self.length < 2 * SHORTEST_REPEAT:
            raise DataError(
                f"length is {self.length}; windows have at least {2 * SHORTEST_REPEAT} tokens"
            )
        if not 0.0 <= self.repeats <= 1.0:
            raise DataError(f"repeats is {self.repeats}; expected a share between 0 and 1")

    @cached_property
    def table(self) -> Table:
        """The table behind the stream."""
        return open_source(self.location, {})

    @cached_property
    def epoch_size(self) -> int:
        """Windows in one epoch."""
        return max(1, int(self._lengths.sum()) // self.length)

    @cached_property
    def fingerprint(self) -> str:
        """Stands for the windows at all positions."""
        layout = {
            "layout": "windows",
            "version": _DRAW_VERSION,
            "length": self.length,
            "repeats": self.repeats,
        }
        return stream_fingerprint(self.table, self.table.rows, self.seed, layout)

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The windows at these positions."""
        samples: list[Sample] = []
        for position in positions:
            draw = self._draw(position)
            row = int(np.searchsorted(self._ends, draw.place, side="right"))
            start = draw.place + int(self._shifts[row])
            window = self._text[start : start + self.length]
            if draw.period is not None:
                window = np.resize(window[: draw.period], self.length)
            tokens = window.astype(np.int64)
            samples.append(
                {"id": position % self.epoch_size, "input_ids": tokens, "labels": tokens.copy()}
            )
        return samples

    @cached_property
    def _text(self) -> npt.NDArray[np.uint8]:
        return _text(self.table)

    @cached_property
    def _lengths(self) -> npt.NDArray[np.int64]:
        return self.table.lengths("tokens").astype(np.int64)

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        """Windows up to the end of each document."""
        return _window_ends(self._lengths, self.length, self.location)

    @cached_property
    def _shifts(self) -> npt.NDArray[np.int64]:
        return _shifts(self._lengths, self._ends, self.length)

    def _draw(self, position: int) -> _Draw:
        key = np.array([self.seed & _WORD, position & _WORD], dtype=np.uint64)
        words = np.random.Philox(key=key).random_raw(3)
        place = int(words[0] % np.uint64(self._ends[-1]))
        if int(words[1]) / 2**64 >= self.repeats:
            return _Draw(place, None)
        periods = self.length // 2 - SHORTEST_REPEAT + 1
        return _Draw(place, SHORTEST_REPEAT + int(words[2] % np.uint64(periods)))

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class _Draw:
    place: int
    """Number of the window among all windows of all documents."""
    period: int | None
    """Tokens that are repeated; None for a window as it stands."""


@dataclass(frozen=True)
class FixedWindows:
    """Windows to measure on, the same ones for every model and scheme."""

    tokens: npt.NDArray[np.uint8]
    """[windows, length]."""
    paths: tuple[str, ...]
    """The file that each window is from."""
    starts: tuple[int, ...]
    """Where in its file each window starts."""
    fingerprint: str
    """Stands for the tokens."""


def fixed_windows(table: Table, *, length: int, windows: int, seed: int) -> FixedWindows:
    """`windows` different windows of `length` tokens, drawn like those of the stream.

    Raises:
        DataError: The documents have fewer.
    """
    lengths = table.lengths("tokens").astype(np.int64)
    ends = _window_ends(lengths, length, table.location)
    if ends[-1] < windows:
        raise DataError(
            f"{table.location} has {ends[-1]} windows of {length} tokens, but {windows} are asked "
            "for: lower the number or the length"
        )
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen: dict[int, None] = {}
    while len(chosen) < windows:
        chosen[int(generator.integers(ends[-1]))] = None
    text = _text(table)
    places = np.array(list(chosen))
    rows = np.searchsorted(ends, places, side="right")
    starts = places + _shifts(lengths, ends, length)[rows]
    tokens = np.stack([text[start : start + length] for start in starts.tolist()])
    first_tokens = (np.cumsum(lengths) - lengths)[rows]
    return FixedWindows(
        tokens=tokens,
        paths=tuple(table.take(rows).column("path").to_pylist()),
        starts=tuple((starts - first_tokens).tolist()),
        fingerprint=hashlib.sha256(tokens.tobytes()).hexdigest(),
    )


def _text(table: Table) -> npt.NDArray[np.uint8]:
    """All documents end to end."""
    chunks = [chunk.flatten() for chunk in table.column("tokens").chunks]
    return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in chunks])


def _window_ends(
    lengths: npt.NDArray[np.int64], length: int, location: Location
) -> npt.NDArray[np.int64]:
    ends = np.cumsum(np.maximum(lengths - length + 1, 0))
    if not len(ends) or ends[-1] == 0:
        raise DataError(f"{location} has no document of {length} tokens")
    return ends


def _shifts(
    lengths: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], length: int
) -> npt.NDArray[np.int64]:
    """For each document what turns the number of one of its windows into its first token."""
    windows_before = ends - np.maximum(lengths - length + 1, 0)
    tokens_before = np.cumsum(lengths) - lengths
    return tokens_before - windows_before


@dataclass(frozen=True)
class FixedWindowStream:
    """Some of the windows that `fixed_windows` draws, in order: samples with `id`, `input_ids`."""

    location: Location
    length: int
    windows: int
    """Windows that are drawn."""
    seed: int
    first: int = 0
    """The first of the drawn windows that is read."""
    count: int | None = None
    """How many are read; None: all from the first."""

    @cached_property
    def drawn(self) -> FixedWindows:
        """All windows."""
        table = open_source(self.location, {})
        return fixed_windows(table, length=self.length, windows=self.windows, seed=self.seed)

    @property
    def epoch_size(self) -> int:
        """The number of windows that are read."""
        return self.windows - self.first if self.count is None else self.count

    @property
    def fingerprint(self) -> str:
        """Stands for the windows that are read."""
        return f"{self.drawn.fingerprint}:{self.first}:{self.epoch_size}"

    def samples(self, positions: Sequence[int]) -> list[Sample]:
        """The windows at these positions."""
        return [
            {"id": place, "input_ids": self.drawn.tokens[self.first + place].astype(np.int64)}
            for place in (position % self.epoch_size for position in positions)
        ]

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}
