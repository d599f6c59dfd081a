"""The keys of a sweep and their values: listed, drawn, or changed a little. No config, no Ray.

Everything drawn comes from a generator that is given, seeded by the sweep's seed and the number of
the trial: a trial's values depend neither on the order in which trials end nor on a restart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from heliostat.sweep.config import RangeConfig, Value

Values = dict[str, Value]
"""Dotted key of the config to what a trial sets it to."""


@dataclass(frozen=True)
class Space:
    """All keys of a sweep."""

    ranges: Mapping[str, RangeConfig]

    @property
    def keys(self) -> list[str]:
        """All keys, each followed by those that go with it."""
        return [one for key, values in self.ranges.items() for one in (key, *values.along)]

    def completed(self, values: Mapping[str, Value]) -> Values:
        """The values, and those of the keys that go with them."""
        found: Values = {}
        for key, value in values.items():
            found[key] = value
            for other, others in self.ranges[key].along.items():
                found[other] = others[self.ranges[key].place(value)]
        return found

    def size(self) -> int:
        """How many combinations of listed values there are."""
        return math.prod(len(values.listed or ()) for values in self.ranges.values())

    def cells(self) -> Iterator[Values]:
        """Every combination, the last key moving fastest."""
        return (self.cell(number) for number in range(self.size()))

    def cell(self, number: int) -> Values:
        """The combination of that number."""
        return self.completed(self._cell(number, self.ranges))

    def _cell(self, number: int, keys: Collection[str]) -> Values:
        values: Values = {}
        for key in reversed([key for key in self.ranges if key in keys]):
            listed = self.ranges[key].listed or []
            number, place = divmod(number, len(listed))
            values[key] = listed[place]
        return {key: values[key] for key in self.ranges if key in values}

    def drawn(self, seed: int, number: int) -> Values:
        """The values of the trial of that number; keys with a grid go through all combinations."""
        generator = random.Random(f"{seed}-{number}")
        grids = [key for key, values in self.ranges.items() if values.grid is not None]
        combinations = math.prod(len(self.ranges[key].listed or ()) for key in grids)
        cell = self._cell(number % combinations, grids)
        return self.completed(
            {
                key: cell[key] if key in cell else draw(values, generator)
                for key, values in self.ranges.items()
            }
        )

    def changed(
        self, values: Values, generator: random.Random, *, resample: float, factor: float
    ) -> Values:
        """Values near the given ones, some drawn anew (Jaderberg et al. 2017, `explore`)."""
        return self.completed(
            {
                key: draw(ranges, generator)
                if generator.random() < resample
                else _neighbour(ranges, values[key], generator, factor)
                for key, ranges in self.ranges.items()
            }
        )


def draw(values: RangeConfig, generator: random.Random) -> Value:
    """One value of a range."""
    if values.listed is not None:
        return generator.choice(values.listed)
    if values.log_uniform is not None:
        low, high = values.log_uniform
        drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
        return _rounded(min(max(drawn, low), high))
    assert values.uniform is not None
    return _rounded(generator.uniform(*values.uniform))


def _neighbour(values: RangeConfig, value: Value, generator: random.Random, factor: float) -> Value:
    """The value moved one place up or down, or multiplied by `factor` or its inverse."""
    is_up = generator.random() < 0.5
    if values.bounds is not None and isinstance(value, (int, float)):
        low, high = values.bounds
        moved = value * factor if is_up else value / factor
        if values.integer is not None:
            # A small whole number would round back to itself.
            step = max(1, round(abs(moved - value)))
            return int(min(max(value + (step if is_up else -step), low), high))
        return _rounded(min(max(moved, low), high))
    listed = values.listed
    assert listed is not None
    place = values.place(value) + (1 if is_up else -1)
    return listed[min(max(place, 0), len(listed) - 1)]


def _rounded(number: float) -> float:
    """Six significant digits: what a table shows is what was used."""
    return float(f"{number:.6g}")
