"""Samples, and how the rows of an Arrow table become samples.

Numbers, strings, bytes and nested values become plain Python values; lists and tensors of numbers
become NumPy arrays that own their memory, so they can be turned into torch tensors as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import pyarrow as pa

Sample: TypeAlias = Mapping[str, object]


def rows_to_samples(table: pa.Table) -> list[Sample]:
    """One mapping from column to value for each row."""
    columns = [_values(table.column(name)) for name in table.column_names]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list[object]:
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        tensors = [chunk.to_numpy_ndarray() for chunk in column.chunks]
        return [row.copy() for tensor in tensors for row in tensor]
    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    if is_list and _is_number(kind.value_type):
        return [_array(scalar) for scalar in column]
    return list(column.to_pylist())


def _array(scalar: pa.Scalar) -> object:
    if not scalar.is_valid:
        return None
    return scalar.values.to_numpy(zero_copy_only=False).copy()


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )
