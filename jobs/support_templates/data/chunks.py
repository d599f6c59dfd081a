"""Raw cases in chunks that workers can read on their own: the row groups of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from heliostat.storage import Location
from jobs.support_templates.data.case_columns import CaseColumns, case_columns
from jobs.support_templates.data.checks import CASE_COLUMNS
from jobs.support_templates.data.columns import check_schema
from jobs.support_templates.data.schema import BATCH_CASES, opened_parquet, parquet_files

ROWS_PER_CHUNK = 8192
"""Row groups are put together up to about this many cases."""


@dataclass(frozen=True)
class CaseChunk:
    """Consecutive row groups of one file."""

    file: Location
    row_groups: tuple[int, ...]
    first_row: int
    """Number of the first row in the file, from 1, for error messages."""


def files_of(location: Location) -> list[Location]:
    """The Parquet files of a table of cases."""
    return parquet_files(location)


def chunks_of(location: Location) -> list[CaseChunk]:
    """The chunks of a table of cases."""
    chunks = []
    for file in parquet_files(location):
        with opened_parquet(file) as reader:
            metadata = reader.metadata
            groups: list[int] = []
            rows, first_row = 0, 1
            for group in range(metadata.num_row_groups):
                groups.append(group)
                rows += metadata.row_group(group).num_rows
                if rows >= ROWS_PER_CHUNK or group == metadata.num_row_groups - 1:
                    chunks.append(CaseChunk(file, tuple(groups), first_row))
                    first_row, groups, rows = first_row + rows, [], 0
    return chunks


def read_chunk(chunk: CaseChunk, templates: Set[str] | None) -> Iterator[CaseColumns]:
    """The cases of a chunk, checked, in batches of bounded size.

    Raises `DataError` for the first row that breaks the schema.
    """
    with opened_parquet(chunk.file) as reader:
        check_schema(reader.schema_arrow, CASE_COLUMNS, chunk.file.uri)
        documented = {column.outer for column in CASE_COLUMNS}
        present = [name for name in reader.schema_arrow.names if name in documented]
        row = chunk.first_row
        for batch in reader.iter_batches(
            batch_size=BATCH_CASES, row_groups=list(chunk.row_groups), columns=present
        ):
            yield case_columns(batch, chunk.file.uri, row, templates)
            row += batch.num_rows
