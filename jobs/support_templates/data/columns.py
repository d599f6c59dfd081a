"""Which Parquet columns stand in for a wanted one, and how they are read.

A user's table rarely has the documented types to the letter. What loses nothing is accepted and
remarked once for each file: any width of integer, any unit or zone of time, dictionary-encoded or
large strings, columns beyond the documented ones, optional columns that are absent. All else is a
`DataError` that names the column, the type found and the type expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from heliostat.errors import DataError


@dataclass(frozen=True)
class Column:
    """A documented column; `list.field` names a field of the structs in a list column."""

    name: str
    """Its name, with at most one dot."""
    type: pa.DataType
    """The documented type of its values."""
    substitute: str | None = None
    """What is taken when the column is absent, in words; None when it must be there."""

    @property
    def outer(self) -> str:
        """The column of the file that holds it."""
        return self.name.partition(".")[0]

    @property
    def inner(self) -> str:
        """The field within the structs of a list column, or an empty string."""
        return self.name.partition(".")[2]


def check_schema(schema: pa.Schema, columns: Sequence[Column], file: str) -> list[str]:
    """Refuse a file whose columns cannot be read; returns a remark on each accepted difference."""
    remarks: list[str] = []
    fields = {field.name: field.type for field in schema}
    for column in columns:
        if not column.inner:
            remarks += _check_column(column, fields, file)
            continue
        if column.outer not in fields:
            raise DataError(_absent(column.outer, "list of structs", fields, file))
        remarks += _check_column(column, _struct_fields(fields[column.outer], column, file), file)
    documented = {column.outer for column in columns}
    extra = [name for name in fields if name not in documented]
    if extra:
        remarks.append(f"columns that are not read: {', '.join(extra)}")
    return remarks


def read_columns(
    batch: pa.RecordBatch, columns: Sequence[Column], file: str
) -> dict[str, list[object]]:
    """The values of a batch that passed `check_schema`, column by column, as `read_arrays`."""
    return {name: array.to_pylist() for name, array in read_arrays(batch, columns, file).items()}


def read_arrays(batch: pa.RecordBatch, columns: Sequence[Column], file: str) -> dict[str, pa.Array]:
    """The columns of a batch that passed `check_schema`, in their documented types.

    An absent column is all null. A list column `messages` gives its lengths (null where the list
    is null) as `messages` and the values of all its lists, one after another, as `messages.field`.
    """
    arrays: dict[str, pa.Array] = {}
    flat: dict[str, pa.Array] = {}
    for column in columns:
        if not column.inner:
            arrays[column.name] = _array(batch, column, file)
            continue
        if column.outer not in flat:
            lists = batch.column(column.outer)
            arrays[column.outer] = pc.list_value_length(lists)
            flat[column.outer] = lists.flatten()
        arrays[column.name] = _array(flat[column.outer], column, file)
    return arrays


def _array(holder: pa.RecordBatch | pa.StructArray, column: Column, file: str) -> pa.Array:
    if isinstance(holder, pa.RecordBatch):
        if column.name not in holder.schema.names:
            return pa.nulls(holder.num_rows, column.type)
        array = holder.column(column.name)
    else:
        if holder.type.get_field_index(column.inner) < 0:
            return pa.nulls(len(holder), column.type)
        array = pc.struct_field(holder, column.inner)
    try:
        return _cast(array, column.type)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{file}: column {column.name} holds a value that is no {column.type}: {error}"
        ) from error


def _cast(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    if not kinds.is_timestamp(wanted):
        return array.cast(wanted)
    if not kinds.is_timestamp(array.type) or array.type.tz is None:
        array = array.cast(pa.timestamp(wanted.unit), safe=False)
    return array.cast(wanted, safe=False)


def _check_column(column: Column, fields: dict[str, pa.DataType | None], file: str) -> list[str]:
    name = column.inner or column.name
    if name not in fields:
        if column.substitute is None:
            raise DataError(_absent(column.name, str(column.type), fields, file))
        return [f"no column {column.name}; taken instead: {column.substitute}"]
    found = fields[name]
    if found == column.type or (kinds.is_null(found) and column.substitute is not None):
        return []
    if not _is_castable(found, column.type):
        raise DataError(f"{file}: column {column.name} is {found}; expected {column.type}")
    is_naive = kinds.is_timestamp(column.type) and getattr(found, "tz", None) is None
    reading = f"{column.type}, taking its times as UTC" if is_naive else str(column.type)
    return [f"column {column.name} is {found}, read as {reading}"]


def _is_castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    if kinds.is_dictionary(found):
        return _is_castable(found.value_type, wanted)
    if kinds.is_timestamp(wanted):
        return bool(kinds.is_timestamp(found) or kinds.is_date(found))
    if kinds.is_integer(wanted):
        return bool(kinds.is_integer(found))
    return bool(
        kinds.is_string(found) or kinds.is_large_string(found) or kinds.is_string_view(found)
    )


def _struct_fields(found: pa.DataType, column: Column, file: str) -> dict[str, pa.DataType | None]:
    is_list = kinds.is_list(found) or kinds.is_large_list(found) or kinds.is_fixed_size_list(found)
    if not is_list or not kinds.is_struct(found.value_type):
        raise DataError(f"{file}: column {column.outer} is {found}; expected a list of structs")
    return {field.name: field.type for field in found.value_type}


def _absent(name: str, expected: str, fields: dict[str, pa.DataType | None], file: str) -> str:
    near = get_close_matches(name.rpartition(".")[2], fields, n=1)
    hint = f"; did you mean its column {near[0]!r}?" if near else ""
    return f"{file}: column {name} is missing; expected type {expected}{hint}"
