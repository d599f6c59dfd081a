"""The cache of a server: pages of 16 tokens in a pool, and a list of pages for each sequence.

It stores. Which page is free and who may share one is decided by whoever hands the lists over:
sharing a prefix is naming the same pages, freeing is forgetting them. Reading is a view where a
sequence reads alone and its pages follow one another, and a gather otherwise. The contract is that
of `models.cache`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from models.cache import CacheStep, LayerLayout, Storage
from models.ragged import Group

PAGE_TOKENS = 16


@dataclass(frozen=True)
class PagedSequence:
    """A sequence in a step of a `PagedCache`."""

    pages: Sequence[int]
    """Page i holds positions 16 i to 16 i + 15; there may be more than needed."""
    past: int
    """Cached tokens."""
    new: int
    """New tokens, at least 1."""
    slot: int = 0
    """Its own place in the rings; of no meaning where no layer has one."""
    ring_is_stale: bool = False
    """Its cached tokens came from another sequence and its rings hold none of them."""


class PagedCache(Storage):
    """A pool of pages for many sequences; it stores, and whoever steps it decides what is where."""

    def __init__(
        self,
        layouts: Sequence[LayerLayout],
        *,
        pages: int,
        sequences: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            layouts, tokens=pages * PAGE_TOKENS, sequences=sequences, dtype=dtype, device=device
        )
        self.pages = pages

    def step(self, sequences: Sequence[PagedSequence]) -> CacheStep:
        """Begin a step. Sequences of like lengths should be neighbours: they are read together."""
        past, new = [one.past for one in sequences], [one.new for one in sequences]
        addresses = _Tables(sequences, self.device)
        return CacheStep(self, addresses, past, new, [one.ring_is_stale for one in sequences])

    def clear(self, pages: Iterable[int]) -> None:
        """Overwrite pages with zeros: after a fault that left something not finite in them."""
        for layer in self.kept:
            for flat in layer.values():
                torch.unflatten(flat, 0, (-1, PAGE_TOKENS))[list(pages)] = 0


class _Tables:
    def __init__(self, sequences: Sequence[PagedSequence], device: torch.device) -> None:
        self._sequences, self._device = sequences, device
        slots: list[int] = []
        for one in sequences:
            if -(-(one.past + one.new) // PAGE_TOKENS) > len(one.pages):
                raise ValueError(f"{one.past + one.new} tokens need more pages than {one.pages}.")
            slots += [
                one.pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
                for position in range(one.past, one.past + one.new)
            ]
        self._slots_N = torch.tensor(slots, device=device)
        self.ring_places: Sequence[int] = [one.slot for one in sequences]
        self._read_tables: dict[int, torch.Tensor | int] = {}
        self._last_slots: dict[tuple[int, int], torch.Tensor] = {}

    def write(self, flat: torch.Tensor, rows_Nw: torch.Tensor) -> None:
        flat.index_copy_(0, self._slots_N, rows_Nw)

    def read(self, flat: torch.Tensor, group: Group) -> torch.Tensor:
        first = group.sequences.start
        if first not in self._read_tables:
            self._read_tables[first] = self._table(group)
        table = self._read_tables[first]
        if isinstance(table, int):
            return flat[table : table + group.longest][None]
        paged = torch.unflatten(flat, 0, (-1, PAGE_TOKENS))
        read = paged.index_select(0, table).view(group.size, -1, flat.shape[1])
        return read[:, : group.longest]

    def read_last(self, flat: torch.Tensor, group: Group, count: int) -> torch.Tensor:
        key = (group.sequences.start, count)
        if key not in self._last_slots:
            self._last_slots[key] = self._slots_of_last(group, count)
        return flat.index_select(0, self._last_slots[key]).view(group.size, count, -1)

    def _slots_of_last(self, group: Group, count: int) -> torch.Tensor:
        """Where the last tokens of a group are, sequence by sequence; only their pages are seen."""
        most = -(-count // PAGE_TOKENS) + 1
        tables = []
        for one in self._sequences[group.sequences]:
            first = max(one.past + one.new - count, 0) // PAGE_TOKENS
            pages = list(one.pages[first : first + most])
            tables.append(pages + [pages[0]] * (most - len(pages)))
        positions_SC = group.last_positions(count).clamp(min=0)
        numbers_SC = positions_SC // PAGE_TOKENS
        pages_SP = torch.tensor(tables, device=self._device)
        pages_SC = pages_SP.gather(1, numbers_SC - numbers_SC[:, :1])
        return (pages_SC * PAGE_TOKENS + positions_SC % PAGE_TOKENS).flatten()

    def _table(self, group: Group) -> torch.Tensor | int:
        """The pages of a group, sequence by sequence; or the first token where they follow on."""
        needed = -(-group.longest // PAGE_TOKENS)
        tables = [list(one.pages[:needed]) for one in self._sequences[group.sequences]]
        if len(tables) == 1:
            (pages,) = tables
            if pages == list(range(pages[0], pages[0] + needed)):
                return pages[0] * PAGE_TOKENS
        for pages in tables:
            # A sequence that has fewer pages is filled up with its own first one.
            pages += [pages[0]] * (needed - len(pages))
        return torch.tensor(tables, device=self._device).flatten()
