"""Finding case ids that occur twice, in eight bytes of memory an id.

Ids are kept as 64-bit BLAKE2b digests in sorted arrays. As in a log-structured merge tree, arrays
of like size are merged, so that n ids lie in about log n arrays and adding one costs amortised
O(log n) copies. Two ids may share a digest (with chance n^2 / 2^65), so a hit is a suspicion that
the caller confirms by reading the ids again.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


class CaseIds:
    """The digests of all ids seen so far."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, ids: Sequence[str]) -> list[int]:
        """Remember ids; returns the positions of those whose digest was there already."""
        raw = b"".join(blake2b(one.encode(), digest_size=8).digest() for one in ids)
        digests = np.frombuffer(raw, dtype=np.uint64)
        unique, first = np.unique(digests, return_index=True)
        is_repeated = np.ones(len(digests), dtype=bool)
        is_repeated[first] = False
        for run in self._runs:
            slots = np.minimum(np.searchsorted(run, digests), len(run) - 1)
            is_repeated |= run[slots] == digests
        self._merge(unique)
        return [int(position) for position in np.flatnonzero(is_repeated)]

    def _merge(self, run: NDArray[np.uint64]) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.union1d(self._runs.pop(), run)
        if len(run):
            self._runs.append(run)
