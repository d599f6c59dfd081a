"""How long batches take, by their size."""

from __future__ import annotations

from dataclasses import dataclass, field

SHARE = 0.2
"""Weight of the newest batch in a mean."""


@dataclass
class Durations:
    """Recent means of the seconds of batches, for each power of two of their tokens."""

    seconds: dict[int, float] = field(default_factory=dict)
    """By the number of bits of the tokens."""

    @property
    def shortest(self) -> float | None:
        """Of the smallest batches; None before the first."""
        return self.seconds[min(self.seconds)] if self.seconds else None

    def note(self, tokens: int, seconds: float) -> None:
        """Count a batch. A single stall of the machine at most doubles what was known."""
        bits = tokens.bit_length()
        known = self.seconds.get(bits, seconds)
        self.seconds[bits] = known + SHARE * (min(seconds, 2 * known) - known)

    def foretold_s(self, tokens: int) -> float:
        """Seconds that a batch will take; where its size is new, rather more than it will.

        A size between two that are known is taken to last as long as the larger one, and one above
        all of them in proportion to its tokens.
        """
        bits = tokens.bit_length()
        above = [size for size in self.seconds if size >= bits]
        if above:
            return self.seconds[min(above)]
        if not self.seconds:
            return float("inf")
        largest = max(self.seconds)
        return float(self.seconds[largest] * 2 ** (bits - largest))
