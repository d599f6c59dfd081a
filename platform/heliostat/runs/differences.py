"""Configs and metrics as flat tables, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import yaml

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Absent:
    """Stands where one side has no such key; prints as a dash."""

    def __str__(self) -> str:
        return "-"


ABSENT = Absent()


@dataclass(frozen=True)
class Difference(Generic[T_co]):
    """One key and its value on every side, in the order of the sides."""

    key: str
    values: tuple[T_co | Absent, ...]


def flatten_config(resolved_yaml: str) -> dict[str, object]:
    """Dotted key to value; an empty section and a list count as values."""
    return flatten(yaml.safe_load(resolved_yaml))


def flatten(content: object) -> dict[str, object]:
    """The same for what was read already."""
    flat: dict[str, object] = {}

    def visit(prefix: str, value: object) -> None:
        if isinstance(value, Mapping) and value:
            for key, item in value.items():
                visit(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            flat[prefix] = value

    if content:
        visit("", content)
    return flat


def differences(sides: Sequence[Mapping[str, T]]) -> list[Difference[T]]:
    """The keys whose values are not the same on every side, in order of first appearance."""
    keys = dict.fromkeys(key for side in sides for key in side)
    rows = [Difference(key, tuple(side.get(key, ABSENT) for side in sides)) for key in keys]
    return [row for row in rows if any(value != row.values[0] for value in row.values)]
