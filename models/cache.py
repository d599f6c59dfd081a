"""What attention keeps of the tokens it has seen: one contract, two storages.

A layer says what it keeps with a `LayerLayout`: for every token some named vectors (`Kept`), and
for every sequence some rings (`Ring`) that hold the last tokens only.

    multi-head, grouped-query     Kept("key_value", 2 K D)
    multi-head latent (MLA)       Kept("latent_key", d_c + d_R)        c_j, then the shared R_j k_j
    ReRoPE                        Kept("key", K D), Kept("value", K D), Ring("near_key", K D, w)

A language model is a `CachedLM`: `cache_layouts()` says what its layers keep, and

    logits_RV = model.cached(input_ids_N, step, rows_R)

computes a step, where the N rows are the new tokens of all sequences, one sequence after the other,
and rows_R are those whose logits are wanted (`step.last_rows`: the newest of each sequence). A
layer does, in each step,

    cache = step.layer(index)
    cache.write("key_value", key_value_Nw)                  # rows in the order of the step
    for group in step.groups:                               # rectangles, see models.ragged
        q_SMHD = torch.unflatten(q_NHD[group.rows], 0, (group.size, group.new))
        key_value_SLw = cache.read("key_value", group)      # column j is position j
        ... group.mask(dtype) where group.needs_mask ...

What is read past the end of a shorter sequence is finite and means nothing; the mask closes it.
A layer that sees the last tokens only reads these with `read_last`, where the columns end with the
newest token of each sequence, and what precedes a shorter sequence means nothing.
Rotary positions are `step.positions_N`. A result never depends on the other sequences of a step but
for rounding.

Rings. Slot j mod w of a ring holds position j. `ring` gives the slots of a group as they are and
the position that each holds, -1 where it holds none: attention asks for positions, never for an
order, so nothing is moved. Before `write_ring` it shows the tokens before the step, which a chunk
of a prompt needs since it may overwrite them; after it, the newest w. Where `step.ring_is_stale`
says so for a sequence, its cached tokens came from another one with the same beginning and its ring
holds none of them: the layer computes those of the last w cached tokens that it needs from what it
keeps for every token, and puts them in with `fill_ring`, before it reads the ring.

Storages. `models.contiguous_cache` is for a notebook or a benchmark: a fixed number of sequences
that always step together; reading is a view. `models.paged_cache` is for many sequences that come
and go: a pool of pages of 16 tokens and, for each sequence, a list of page numbers. A group that is
read together is gathered; a sequence that reads alone on pages that follow one another is a view.

The cache is for inference: call it under `torch.inference_mode()` or `torch.no_grad()`.

Shapes: N new tokens of the step, S sequences and M new tokens of each in a group, L columns that a
group reads, W slots of a ring, w width of what is kept.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from models.ragged import Group, groups_of

_UNWRITTEN = object()


@dataclass(frozen=True)
class Kept:
    """A vector that a layer keeps for every token."""

    name: str
    width: int


@dataclass(frozen=True)
class Ring:
    """A vector that a layer keeps for the last `length` tokens of every sequence."""

    name: str
    width: int
    length: int


@dataclass(frozen=True)
class LayerLayout:
    """All that a layer keeps."""

    tokens: tuple[Kept, ...]
    rings: tuple[Ring, ...] = ()


@dataclass(frozen=True)
class RingView:
    """The slots of a ring for the sequences of a group."""

    rows: torch.Tensor
    """[S, W, w]."""
    lengths: tuple[int, ...]
    """Tokens that each sequence has put in, S of them."""

    @cached_property
    def positions(self) -> torch.Tensor:
        """[S, W]: the position whose vector a slot holds; -1: none."""
        slots, device = self.rows.shape[1], self.rows.device
        last_S1 = torch.tensor(self.lengths, device=device)[:, None] - 1
        # The newest position that is congruent to the slot.
        positions_SW = last_S1 - (last_S1 - torch.arange(slots, device=device)) % slots
        return positions_SW.clamp_(min=-1)


class CachedLM(Protocol):
    """A causal language model that reads and writes a cache."""

    def cache_layouts(self) -> Sequence[LayerLayout]:
        """What each layer keeps."""
        ...

    def cached(
        self, input_ids_N: torch.Tensor, step: CacheStep, rows_R: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Next-token logits [R, V] of the rows, of all N when None."""
        ...


class Addresses(Protocol):
    """Where the tokens of a step are in flat storage, [all tokens, w]."""

    ring_places: Sequence[int]
    """For each sequence of the step its place in the rings."""

    def write(self, flat: torch.Tensor, rows_Nw: torch.Tensor) -> None: ...

    def read(self, flat: torch.Tensor, group: Group) -> torch.Tensor: ...

    def read_last(self, flat: torch.Tensor, group: Group, count: int) -> torch.Tensor: ...


class Storage:
    """The tensors of all layers; what both caches have in common."""

    def __init__(
        self,
        layouts: Sequence[LayerLayout],
        *,
        tokens: int,
        sequences: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.tokens, self.sequences = tokens, sequences
        self.device, self.dtype = torch.device(device), dtype
        self.positions: Hashable = _UNWRITTEN
        """How the cached keys were given their positions."""
        self.kept = [
            {
                kept.name: torch.zeros(tokens, kept.width, dtype=dtype, device=self.device)
                for kept in layout.tokens
            }
            for layout in layouts
        ]
        self.rings = [
            {
                ring.name: torch.zeros(
                    sequences, ring.length, ring.width, dtype=dtype, device=self.device
                )
                for ring in layout.rings
            }
            for layout in layouts
        ]

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a token takes over all layers, as the tensors have them."""
        return sum(flat.nbytes for layer in self.kept for flat in layer.values()) // self.tokens

    @property
    def ring_bytes_per_sequence(self) -> int:
        """Bytes that the rings of a sequence take over all layers, however long it is."""
        return sum(ring.nbytes for layer in self.rings for ring in layer.values()) // self.sequences


class CacheStep:
    """One step of several sequences; what the layers of a model are given."""

    def __init__(
        self,
        storage: Storage,
        addresses: Addresses,
        past: Sequence[int],
        new: Sequence[int],
        ring_is_stale: Sequence[bool],
    ) -> None:
        self._storage, self._addresses = storage, addresses
        self.past, self.new = tuple(past), tuple(new)
        self.ring_is_stale = tuple(ring_is_stale)
        self.groups = groups_of(past, new, storage.device)
        self.positions_N = torch.cat([group.query_positions().flatten() for group in self.groups])

    @property
    def last_rows(self) -> list[int]:
        """The row of the last new token of each sequence."""
        rows, row = [], -1
        for new in self.new:
            row += new
            rows.append(row)
        return rows

    def claim(self, positions: Hashable) -> None:
        """Say how this step gives keys their positions: None, or a plan of `models.positions`.

        Raises:
            ValueError: The cache holds keys that were given theirs in another way.
        """
        if self._storage.positions is _UNWRITTEN:
            self._storage.positions = positions
        elif self._storage.positions != positions:
            raise ValueError(
                f"this cache was written under {self._storage.positions}, so it cannot be read "
                f"under {positions}: its keys stand at other positions."
            )

    def layer(self, index: int) -> LayerCache:
        """What layer `index` reads and writes."""
        return LayerCache(self, self._storage.kept[index], self._storage.rings[index])


class LayerCache:
    """A layer's side of a step."""

    def __init__(
        self, step: CacheStep, kept: dict[str, torch.Tensor], rings: dict[str, torch.Tensor]
    ) -> None:
        self._step, self._kept, self._rings = step, kept, rings
        self._addresses = step._addresses
        self._written: set[str] = set()

    def write(self, name: str, rows_Nw: torch.Tensor) -> None:
        """Keep the vectors of the new tokens."""
        self._addresses.write(self._kept[name], rows_Nw)

    def read(self, name: str, group: Group) -> torch.Tensor:
        """The vectors of all tokens of the group's sequences, new ones included: [S, L, w]."""
        return self._addresses.read(self._kept[name], group)

    def read_last(self, name: str, group: Group, count: int) -> torch.Tensor:
        """The vectors of the last tokens of the group's sequences, new ones included: [S, C, w].

        C is `count`, or the length of the longest sequence where that is less. Column c of a
        sequence of n tokens is position n - C + c.
        """
        return self._addresses.read_last(self._kept[name], group, min(count, group.longest))

    def ring(self, name: str, group: Group) -> RingView:
        """The slots of a ring: before `write_ring` as the step before left them, then the newest.

        A copy where S > 1 and the sequences' places do not follow one another.
        """
        ring = self._rings[name]
        lengths = tuple(p + group.new * (name in self._written) for p in group.past)
        places = self._places(group)
        follow_on = places == list(range(places[0], places[0] + group.size))
        rows_SWw = ring[places[0] : places[0] + group.size] if follow_on else ring[places]
        return RingView(rows_SWw, lengths)

    def write_ring(self, name: str, rows_Nw: torch.Tensor) -> None:
        """Put the vectors of the new tokens into a ring; of a long chunk the newest W."""
        ring = self._rings[name]
        length = ring.shape[1]
        for group in self._step.groups:
            if group.new == group.size == 1:
                slot = ring[self._places(group)[0], group.past[0] % length]
                slot.copy_(rows_Nw[group.rows.start])
                continue
            kept = min(group.new, length)
            rows_SMw = torch.unflatten(rows_Nw[group.rows], 0, (group.size, group.new))[:, -kept:]
            slots_SM = group.query_positions()[:, -kept:] % length
            places_S = torch.tensor(self._places(group), device=ring.device)
            ring[places_S[:, None], slots_SM] = rows_SMw
        self._written.add(name)

    def ring_is_stale(self, sequence: int) -> bool:
        """Whether the rings of a sequence hold none of its cached tokens; see `CacheStep`."""
        return self._step.ring_is_stale[sequence]

    def fill_ring(self, name: str, sequence: int, rows_Tw: torch.Tensor) -> None:
        """Put the vectors of the last T cached tokens of a sequence into its ring, T <= W.

        Args:
            name: of the ring.
            sequence: number of the sequence in the step.
            rows_Tw: oldest first.
        """
        ring = self._rings[name]
        past = self._step.past[sequence]
        positions_T = torch.arange(past - len(rows_Tw), past, device=ring.device)
        ring[self._addresses.ring_places[sequence], positions_T % ring.shape[1]] = rows_Tw

    def _places(self, group: Group) -> list[int]:
        return list(self._addresses.ring_places[group.sequences])
