"""The two raw tables, `cases` and `templates`: their Parquet schemas, readers and writers.

A table is one Parquet file or a folder of them. Readers go through it in batches of bounded size
and refuse what would spoil training silently: a case id used twice, messages out of order, an
unknown role, a template that a customer sent or that nobody knows (`checks`). Columns of another
type or absent are accepted where nothing is lost (`columns`), and the log says so.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.support_templates.data.case_ids import CaseIds
from jobs.support_templates.data.checks import (
    CASE_COLUMNS,
    TEMPLATE_COLUMNS,
    cases_from_batch,
    templates_from_batch,
)
from jobs.support_templates.data.columns import Column, check_schema
from jobs.support_templates.data.rows import Case, Message, Template

__all__ = [
    "CASES_SCHEMA",
    "TEMPLATES_SCHEMA",
    "Case",
    "Message",
    "Template",
    "case_row",
    "parquet_files",
    "read_cases",
    "read_templates",
    "refuse_repeated_cases",
    "write_cases",
    "write_rows",
    "write_templates",
]

log = logging.getLogger(__name__)

BATCH_CASES = 1024
"""Cases in memory at a time while reading."""
ROW_GROUP_CASES = 4096
"""Rows of one Parquet row group that is written."""

_TIMESTAMP = pa.timestamp("us", tz="UTC")
MESSAGE_TYPE = pa.struct(
    [
        pa.field("idx", pa.int32(), nullable=False),
        pa.field("role", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("sent_at", _TIMESTAMP),
        pa.field("template_id", pa.string()),
        pa.field("advocate_id", pa.string()),
    ]
)
CASES_SCHEMA = pa.schema(
    [
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("started_at", _TIMESTAMP),
        pa.field("locale", pa.string()),
        pa.field("messages", pa.list_(MESSAGE_TYPE), nullable=False),
    ]
)
TEMPLATES_SCHEMA = pa.schema(
    [
        pa.field("template_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("body", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("introduced_at", _TIMESTAMP),
        pa.field("retired_at", _TIMESTAMP),
        pa.field("version", pa.int32(), nullable=False),
    ]
)

T = TypeVar("T")


def read_cases(location: Location, templates: Set[str] | None = None) -> Iterator[list[Case]]:
    """The cases of a table, checked, in batches of bounded size.

    Args:
        location: a Parquet file, or a folder whose `*.parquet` files make up the table.
        templates: the ids of the `templates` table; None accepts any template id, for transcripts
            that are only read as text.

    Raises:
        DataError: the first row that breaks the schema, with its file, row and case.
    """
    seen = CaseIds()
    for file in parquet_files(location):
        first_row = 1
        for batch in _batches(file, CASE_COLUMNS):
            cases = cases_from_batch(batch, file.uri, first_row, templates)
            for position in seen.add([case.case_id for case in cases]):
                _refuse_repeated(location, file, first_row + position, cases[position].case_id)
            yield cases
            first_row += len(cases)


def read_templates(location: Location) -> dict[str, Template]:
    """The templates of a table by id, checked, in the order of the table."""
    templates: dict[str, Template] = {}
    for file in parquet_files(location):
        first_row = 1
        for batch in _batches(file, TEMPLATE_COLUMNS):
            for row, template in enumerate(
                templates_from_batch(batch, file.uri, first_row), start=first_row
            ):
                if template.template_id in templates:
                    raise DataError(
                        f"{file.uri}, row {row}: template_id {template.template_id!r} was used in "
                        "an earlier row; expected one row for each template"
                    )
                templates[template.template_id] = template
            first_row += batch.num_rows
    return templates


def write_cases(location: Location, cases: Iterable[Case]) -> int:
    """Write cases to one Parquet file, atomically, with few in memory; returns how many."""
    return write_rows(location, CASES_SCHEMA, cases, case_row)


def write_templates(location: Location, templates: Iterable[Template]) -> int:
    """Write templates to one Parquet file, atomically; returns how many."""
    return write_rows(location, TEMPLATES_SCHEMA, templates, field_values)


def write_rows(
    location: Location,
    schema: pa.Schema,
    rows: Iterable[T],
    as_row: Callable[[T], dict[str, object]],
) -> int:
    """Write rows to one Parquet file, atomically, a row group at a time; returns how many."""
    stream = iter(rows)
    count = 0
    with tempfile.TemporaryDirectory(prefix="heliostat-") as folder:
        local = Path(folder) / "rows.parquet"
        with pq.ParquetWriter(local, schema, compression="zstd") as writer:
            while group := [as_row(row) for row in islice(stream, ROW_GROUP_CASES)]:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                count += len(group)
        location.upload(local)
    return count


def case_row(case: Case) -> dict[str, object]:
    """A case as a row of `CASES_SCHEMA`."""
    return {**field_values(case), "messages": [field_values(one) for one in case.messages]}


def field_values(row: Case | Message | Template) -> dict[str, object]:
    """The fields of a row by name, not converted."""
    return {field.name: getattr(row, field.name) for field in fields(row)}


def parquet_files(location: Location) -> list[Location]:
    """The files that make up a table: the file itself, or the `*.parquet` files of a folder."""
    if not location.exists():
        raise DataError(
            f"{location.uri} does not exist; expected a Parquet file or a folder of them"
        )
    if not location.is_dir():
        return [location]
    files = [file for file in location.list() if file.name.endswith(".parquet")]
    if not files:
        raise DataError(f"{location.uri} holds no *.parquet file; expected at least one")
    return files


def refuse_repeated_cases(location: Location) -> None:
    """Read the ids alone; `DataError` names both rows when a case id is used twice."""
    seen = CaseIds()
    for file in parquet_files(location):
        row = 1
        with opened_parquet(file) as reader:
            if "case_id" not in reader.schema_arrow.names:
                continue  # reading the rows refuses the file, and says more about it
            for batch in reader.iter_batches(batch_size=BATCH_CASES, columns=["case_id"]):
                ids = [str(one) for one in batch.column(0).to_pylist()]
                for position in seen.add(ids):
                    _refuse_repeated(location, file, row + position, ids[position])
                row += len(ids)


def _batches(file: Location, columns: tuple[Column, ...]) -> Iterator[pa.RecordBatch]:
    with opened_parquet(file) as reader:
        for remark in check_schema(reader.schema_arrow, columns, file.uri):
            log.warning("%s: %s", file.uri, remark)
        documented = {column.outer for column in columns}
        present = [name for name in reader.schema_arrow.names if name in documented]
        yield from reader.iter_batches(batch_size=BATCH_CASES, columns=present)


def _refuse_repeated(table: Location, file: Location, row: int, case_id: str) -> None:
    """Raise if an earlier row has this id; without one, two ids merely share a digest."""
    for earlier in parquet_files(table):
        number = 0
        with opened_parquet(earlier) as reader:
            for batch in reader.iter_batches(columns=["case_id"]):
                for other in batch.column(0).to_pylist():
                    number += 1
                    if earlier == file and number == row:
                        return
                    if other == case_id:
                        raise DataError(
                            f"{file.uri}, row {row}: case_id {case_id!r} is already that of row "
                            f"{number} in {earlier.uri}; expected a unique case_id"
                        )


@contextmanager
def opened_parquet(file: Location) -> Iterator[pq.ParquetFile]:
    with file.open_input() as source:
        try:
            reader = pq.ParquetFile(source)
        except pa.ArrowInvalid as error:
            raise DataError(f"{file.uri} is not a Parquet file: {error}") from error
        yield reader
