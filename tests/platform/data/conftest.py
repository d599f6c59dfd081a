"""Small tables of token documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa
import pytest

from heliostat.data.table import Table, TableWriter
from heliostat.storage import Location

DOCUMENTS = pa.schema([("id", pa.string()), ("tokens", pa.list_(pa.uint16()))])


class WriteDocuments(Protocol):
    """Writes documents as a table."""

    def __call__(
        self,
        location: Location,
        documents: Sequence[Sequence[int]],
        *,
        rows_per_shard: int = 1_000_000,
        suffix: str = ".arrow",
        metadata: dict[str, str] | None = None,
    ) -> Table: ...


def _write(location, documents, *, rows_per_shard=1_000_000, suffix=".arrow", metadata=None):
    with TableWriter(location, DOCUMENTS, metadata or {}, rows_per_shard, suffix) as writer:
        for start in range(0, len(documents), 97):
            part = [list(document) for document in documents[start : start + 97]]
            ids = [f"d{number}" for number in range(start, start + len(part))]
            writer.write(pa.RecordBatch.from_pydict({"id": ids, "tokens": part}, schema=DOCUMENTS))
    return Table.open(location)


@pytest.fixture(scope="session")
def write_documents() -> WriteDocuments:
    """The function that writes documents as a table."""
    return _write
