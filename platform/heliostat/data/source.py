"""What every stream over a table shares: opening with demands, kept orders, fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache

from heliostat.data.order import ORDER_VERSION, Order
from heliostat.data.table import Table
from heliostat.errors import DataError
from heliostat.storage import Location

Require = Mapping[str, str | None]
"""Metadata that a table must have: key to value, or to None where any value will do."""


def open_source(location: Location, require: Require) -> Table:
    """Open a table that has rows and the required metadata; a DataError says what is missing."""
    table = Table.open(location)
    for key, expected in require.items():
        found = table.metadata.get(key)
        if found is None:
            raise DataError(f"{location} carries no {key}, and data without it are refused here")
        if expected is not None and found != expected:
            raise DataError(f"{location} has {key} {found!r}; expected {expected!r}")
    if not table.rows:
        raise DataError(f"{location} has no rows")
    return table


def head_rows(table: Table, head: int | None) -> int:
    """How many rows a stream over the first `head` rows has."""
    if head is None:
        return table.rows
    if head < 1:
        raise DataError(f"{table.location}: head must be at least 1, not {head}")
    return min(head, table.rows)


@lru_cache(maxsize=8)
def kept_order(rows: int, seed: int, epoch: int, shuffle: bool) -> Order:
    """The order of an epoch; it is not computed again while its epoch is being read."""
    return Order(rows, seed, epoch, shuffle)


def stream_fingerprint(
    table: Table, rows: int, seed: int | None, layout: Mapping[str, object]
) -> str:
    """Equal for streams that give the same samples in the same order; `seed` None: not shuffled."""
    parts = {
        "table": table.fingerprint,
        "rows": rows,
        "order": None if seed is None else [ORDER_VERSION, seed],
        **layout,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
