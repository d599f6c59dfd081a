"""The cache of a notebook or a benchmark: a fixed number of sequences that step together.

Every sequence has its own stretch of memory, made once, so reading is a view and nothing is copied
but the new tokens. The contract is that of `models.cache`.

    cache = ContiguousCache(model.cache_layouts(), capacity=512)
    logits_RV = model.cached(prompt_N, cache.step([len(prompt_N)]), [-1])
    while ...:
        logits_RV = model.cached(next_token_1, cache.step([1]))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.cache import CacheStep, LayerLayout, Storage
from models.ragged import Group


class ContiguousCache(Storage):
    """A fixed number of sequences, each with room for `capacity` tokens.

    All step together, in order; the cache counts what they have.
    """

    def __init__(
        self,
        layouts: Sequence[LayerLayout],
        *,
        sequences: int = 1,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            layouts,
            tokens=sequences * capacity,
            sequences=sequences,
            dtype=dtype,
            device=device,
        )
        self.capacity = capacity
        self.lengths = [0] * sequences

    def step(self, new: Sequence[int]) -> CacheStep:
        """Begin a step with this many new tokens of each sequence, at least 1."""
        past = list(self.lengths)
        after = [p + m for p, m in zip(past, new, strict=True)]
        if max(after) > self.capacity:
            raise ValueError(f"{max(after)} tokens do not fit into {self.capacity}.")
        self.lengths = after
        starts = [index * self.capacity for index in range(self.sequences)]
        ranges = zip(starts, past, after, strict=True)
        slots = [torch.arange(first + p, first + n) for first, p, n in ranges]
        addresses = _Rows(torch.cat(slots).to(self.device), self.sequences)
        return CacheStep(self, addresses, past, new, [False] * self.sequences)


class _Rows:
    def __init__(self, slots_N: torch.Tensor, sequences: int) -> None:
        self._slots_N, self._sequences = slots_N, sequences
        self.ring_places: Sequence[int] = range(sequences)

    def write(self, flat: torch.Tensor, rows_Nw: torch.Tensor) -> None:
        flat.index_copy_(0, self._slots_N, rows_Nw)

    def read(self, flat: torch.Tensor, group: Group) -> torch.Tensor:
        return torch.unflatten(flat, 0, (self._sequences, -1))[group.sequences, : group.longest]

    def read_last(self, flat: torch.Tensor, group: Group, count: int) -> torch.Tensor:
        rows = torch.unflatten(flat, 0, (self._sequences, -1))[group.sequences]
        if len(set(group.past)) == 1:
            return rows[:, group.longest - count : group.longest]
        columns_SC = group.last_positions(count).clamp(min=0)
        return rows[torch.arange(group.size, device=flat.device)[:, None], columns_SC]
