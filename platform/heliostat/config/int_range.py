"""A count that is fixed (`2`) or may vary between two bounds (`[1, 4]`), as elastic workers do.

In YAML and on the command line it is written as one whole number or a list of two; that is also how
it is written back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from heliostat.config.lines import Plain


@dataclass(frozen=True)
class IntRange:
    """A closed range of whole numbers; `low == high` when the count is fixed."""

    expected: ClassVar[str] = "a whole number such as 2, or a range such as [1, 4]"
    """What an error message says was expected."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"the range [{self.low}, {self.high}] is empty: put the lower first")

    @classmethod
    def from_plain(cls, value: object) -> IntRange:
        """Read `2` or `[1, 4]`; raises `ValueError` for anything else."""
        match value:
            case int() if not isinstance(value, bool):
                return cls(value, value)
            case [int(low), int(high)] if not isinstance(low, bool) and not isinstance(high, bool):
                return cls(low, high)
            case _:
                raise ValueError("neither a whole number nor a list of two")

    def to_plain(self) -> Plain:
        """The form that `from_plain` reads."""
        return self.low if self.is_fixed else [self.low, self.high]

    @property
    def is_fixed(self) -> bool:
        """Whether only one count is allowed."""
        return self.low == self.high

    def __str__(self) -> str:
        return str(self.low) if self.is_fixed else f"{self.low} to {self.high}"
