"""The order in which the rows of a table are visited in one epoch, the same on every machine.

Shuffling happens in two steps: the table is cut into blocks of `BLOCK_ROWS` rows and the blocks are
permuted; every `GROUP_BLOCKS` blocks of that order form a group, and the rows of a group are
permuted among themselves. A set of up to 65,536 rows is one group and is shuffled as a whole. A
reader therefore touches few blocks at a time, and the row at any position is found from the
permutation of the blocks and one group, wherever the position lies.

A permutation is the stable argsort of the raw 64-bit words of Philox4x64 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", 2011), keyed on (seed, epoch), with the purpose in the counter.
NumPy promises that the raw words of a bit generator never change, unlike `Generator.permutation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from heliostat.data.cache import Recent

Indices = npt.NDArray[np.int64]

ORDER_VERSION = 1
"""Part of every stream's fingerprint; raise it when the same key would give another order."""
BLOCK_ROWS = 256
GROUP_BLOCKS = 256
_GROUP_ROWS = BLOCK_ROWS * GROUP_BLOCKS
_WORD = (1 << 64) - 1
_GROUPS_KEPT = 8


def permutation(size: int, seed: int, epoch: int, purpose: int) -> Indices:
    """A permutation of `range(size)` that depends on the three numbers only."""
    key = np.array([seed & _WORD, epoch & _WORD], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=[0, 0, 0, purpose])
    return np.argsort(bits.random_raw(size), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Order:
    """The order of `rows` rows in one epoch."""

    rows: int
    seed: int
    epoch: int
    shuffle: bool = True
    """False: the rows come as they are stored, in every epoch."""

    @property
    def groups(self) -> int:
        """The number of groups."""
        return -(-self.rows // _GROUP_ROWS)

    @cached_property
    def blocks(self) -> Indices:
        """The block numbers in the order in which they are visited."""
        count = -(-self.rows // BLOCK_ROWS)
        if self.shuffle:
            return permutation(count, self.seed, self.epoch, purpose=0)
        return np.arange(count, dtype=np.int64)

    @cached_property
    def group_starts(self) -> Indices:
        """The position of the first row of every group, and at the end the number of rows."""
        sizes = np.full(len(self.blocks), BLOCK_ROWS, dtype=np.int64)
        sizes[self.blocks == len(self.blocks) - 1] -= len(self.blocks) * BLOCK_ROWS - self.rows
        ends = np.concatenate(([0], np.cumsum(sizes)))
        return np.append(ends[:-1:GROUP_BLOCKS], self.rows).astype(np.int64)

    @cached_property
    def _kept(self) -> Recent[int, Indices]:
        return Recent(_GROUPS_KEPT)

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def group(self, number: int) -> Indices:
        """The rows of a group in the order in which they are visited."""
        return self._kept.get(number, self._make_group)

    def at(self, positions: Sequence[int] | Indices) -> Indices:
        """The rows at some positions of the epoch."""
        wanted = np.asarray(positions, dtype=np.int64)
        if not self.shuffle:
            return wanted
        numbers = np.searchsorted(self.group_starts, wanted, side="right") - 1
        rows = np.empty_like(wanted)
        for number in np.unique(numbers):
            chosen = numbers == number
            rows[chosen] = self.group(int(number))[wanted[chosen] - self.group_starts[number]]
        return rows

    def _make_group(self, number: int) -> Indices:
        blocks = self.blocks[number * GROUP_BLOCKS : (number + 1) * GROUP_BLOCKS]
        rows = (blocks[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
        rows = rows[rows < self.rows]
        if not self.shuffle:
            return rows
        return rows[permutation(len(rows), self.seed, self.epoch, purpose=number + 1)]
