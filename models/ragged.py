"""The geometry of a ragged step: several sequences, each with new tokens after cached ones.

Everything but attention works on the rows of all new tokens, one sequence after the other. For
attention, neighbouring sequences are put together into groups that are rectangles: the same number
of new tokens each, so that one product serves all of them. Sequences that decode (one new token)
share a group as long as padding them to the longest costs little; sequences with more new tokens
share one only when they are equally long before them, which needs no padding at all.

Shapes: N new tokens of the step, S sequences of a group, M new tokens of each of them, L cached and
new tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

PADDING_TOKENS = 64
"""A shorter sequence is padded by this many tokens without asking, and beyond by its own length."""


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences of a step that attend in one product."""

    sequences: slice
    """Which sequences of the step they are."""
    rows: slice
    """Their rows among the N of the step: sequence by sequence, S * M in all."""
    past: tuple[int, ...]
    """Cached tokens of each sequence before the step."""
    new: int
    """M."""
    device: torch.device
    _masks: dict[torch.dtype, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def size(self) -> int:
        """S."""
        return len(self.past)

    @property
    def longest(self) -> int:
        """L."""
        return max(self.past) + self.new

    @property
    def is_plain_causal(self) -> bool:
        """Whether nothing was cached before, so that the causal kernels need no mask."""
        return max(self.past) == 0

    @property
    def needs_mask(self) -> bool:
        """Whether some new token must not see some of the L columns, and it is not plain causal."""
        return not self.is_plain_causal and (self.new > 1 or min(self.past) < max(self.past))

    def query_positions(self) -> torch.Tensor:
        """Position of every new token, [S, M]."""
        past_S = torch.tensor(self.past, device=self.device)
        return past_S[:, None] + torch.arange(self.new, device=self.device)

    def last_positions(self, count: int) -> torch.Tensor:
        """Positions of the last tokens of every sequence, below 0 where it is shorter: [S, C]."""
        last_S1 = self.query_positions()[:, -1:]
        return last_S1 - torch.arange(count - 1, -1, -1, device=self.device)

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """0 where a new token may attend to a column, -inf elsewhere, [S, 1, M, L].

        Columns are positions: later ones and padding are closed alike. Made once a step.
        """
        if dtype not in self._masks:
            columns_L = torch.arange(self.longest, device=self.device)
            closed_SML = columns_L > self.query_positions()[..., None]
            mask = torch.zeros(closed_SML.shape, dtype=dtype, device=self.device)
            self._masks[dtype] = mask.masked_fill_(closed_SML, float("-inf"))[:, None]
        return self._masks[dtype]


def groups_of(
    past: Sequence[int], new: Sequence[int], device: torch.device | None = None
) -> list[Group]:
    """Cut a step into groups, in order.

    Args:
        past: cached tokens of each sequence.
        new: new tokens of each, at least 1.
        device: where masks are made.
    """
    where = torch.device("cpu") if device is None else device
    groups: list[Group] = []
    first = row = 0
    for end in range(1, len(past) + 1):
        if end < len(past) and _fits(past[first : end + 1], new[first : end + 1]):
            continue
        rows = sum(new[first:end])
        groups.append(
            Group(
                sequences=slice(first, end),
                rows=slice(row, row + rows),
                past=tuple(past[first:end]),
                new=new[first],
                device=where,
            )
        )
        first, row = end, row + rows
    return groups


def _fits(past: Sequence[int], new: Sequence[int]) -> bool:
    if len(set(new)) > 1:
        return False
    shortest, longest = min(past), max(past)
    if new[0] > 1:
        return shortest == longest
    return longest <= 2 * shortest + PADDING_TOKENS
