"""Writing tables: one shard, or a whole table of numbered shards.

Rows are cut into blocks of a fixed number of rows, whatever the batches that arrive, so a reader
finds the block of a row by division. A shard is first written beside its place (or in a temporary
folder, for an object store) and appears in one step; memory stays at about one block. The length of
every list is also written to a file of its own, so that packing needs no pass over the data.

Several processes may each write shards of one table with `ShardWriter` and hand the `Shard` records
to whoever commits the table.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from heliostat.data.manifest import MANIFEST, File, Shard, save_manifest
from heliostat.data.order import BLOCK_ROWS
from heliostat.errors import DataError
from heliostat.storage import Location, digest, move_into_place, temporary_path

Lengths = npt.NDArray[np.uint32]

SUFFIXES = (".arrow", ".parquet")


def list_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold a list of variable length in each row."""
    return [
        field.name
        for field in schema
        if pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
    ]


class ShardWriter:
    """Writes one shard, `folder / name`; the suffix `.arrow` or `.parquet` chooses the format.

    As a context manager it closes the shard at the end, or takes it away after an error.
    """

    def __init__(
        self, folder: Location, name: str, schema: pa.Schema, rows_per_block: int = BLOCK_ROWS
    ) -> None:
        _check_shard(name, schema)
        self.folder, self.name, self.schema = folder, name, schema
        self.rows_per_block = rows_per_block
        self.rows = 0
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._lengths: dict[str, list[Lengths]] = {key: [] for key in list_columns(schema)}
        self._shard: Shard | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="heliostat-shard-")
        self._file = Path(self._scratch.name) / name
        if folder.is_local:
            # Beside its place, so that the last step is a rename and not a copy.
            folder.make_dir()
            self._file = temporary_path(folder.local_path / name)
        self._sink = pa.OSFile(str(self._file), "wb")
        is_parquet = name.endswith(".parquet")
        self._writer = (pq.ParquetWriter if is_parquet else pa.ipc.new_file)(self._sink, schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows; their schema must be that of the table."""
        _check_schema(batch.schema, self.schema, self.folder / self.name)
        self.rows += batch.num_rows
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        if self._pending_rows >= self.rows_per_block:
            self._flush(whole_blocks=True)

    def close(self) -> Shard:
        """Put the shard in its place and return its record; more calls return the same."""
        if self._shard is None:
            try:
                self._flush(whole_blocks=False)
                self._writer.close()
                self._sink.close()
                self._shard = self._publish()
            finally:
                self.abort()
        return self._shard

    def abort(self) -> None:
        """Take away what is not in its place."""
        self._sink.close()
        self._file.unlink(missing_ok=True)
        self._scratch.cleanup()

    def _flush(self, *, whole_blocks: bool) -> None:
        table = pa.Table.from_batches(self._pending, schema=self.schema).combine_chunks()
        whole = table.num_rows // self.rows_per_block * self.rows_per_block
        ready = table.slice(0, whole) if whole_blocks else table
        for start in range(0, ready.num_rows, self.rows_per_block):
            block = ready.slice(start, self.rows_per_block)
            if isinstance(self._writer, pq.ParquetWriter):
                self._writer.write_table(block, row_group_size=self.rows_per_block)
            else:
                self._writer.write_batch(block.to_batches()[0])
        for name, kept in self._lengths.items():
            lengths = pc.fill_null(pc.list_value_length(ready.column(name)), 0)
            kept.append(lengths.to_numpy().astype("<u4"))
        rest = table.slice(ready.num_rows)
        self._pending = rest.to_batches() if rest.num_rows else []
        self._pending_rows = rest.num_rows

    def _publish(self) -> Shard:
        file = File(self.name, self._file.stat().st_size, digest(self._file))
        lengths = {}
        for column, kept in self._lengths.items():
            data = np.concatenate([np.empty(0, "<u4"), *kept]).tobytes()
            name = f"{self.name}.{column}.lengths"
            (self.folder / name).write_bytes(data)
            lengths[column] = File(name, len(data), hashlib.sha256(data).hexdigest())
        if self.folder.is_local:
            move_into_place(self._file, self.folder.local_path / self.name)
        else:
            (self.folder / self.name).upload(self._file)
        return Shard(file, self.rows, self.rows_per_block, lengths)


class TableWriter:
    """Writes a table from one process; it exists once the `with` block has ended well.

    When the block ends in an error, what was written is taken away.
    """

    def __init__(
        self,
        location: Location,
        schema: pa.Schema,
        metadata: Mapping[str, str],
        rows_per_shard: int = 1_000_000,
        suffix: str = ".arrow",
    ) -> None:
        if (location / MANIFEST).exists():
            raise DataError(f"{location} already holds a table; delete it or name another folder")
        _check_shard(f"shard{suffix}", schema)
        self.location, self.schema, self.metadata = location, schema, dict(metadata)
        self.rows_per_shard, self.suffix = rows_per_shard, suffix
        self._shards: list[Shard] = []
        self._writer: ShardWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish_shard()
            save_manifest(self.location, self._shards, self.schema, self.metadata)
            return
        if self._writer is not None:
            self._writer.abort()
        for file in (file for shard in self._shards for file in shard.files):
            (self.location / file.name).delete()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        while batch.num_rows:
            if self._writer is None:
                name = f"shard-{len(self._shards):05d}{self.suffix}"
                self._writer = ShardWriter(self.location, name, self.schema)
            room = self.rows_per_shard - self._writer.rows
            self._writer.write(batch.slice(0, room))
            batch = batch.slice(room)
            if self._writer.rows == self.rows_per_shard:
                self._finish_shard()

    def _finish_shard(self) -> None:
        if self._writer is not None:
            self._shards.append(self._writer.close())
            self._writer = None


def _check_shard(name: str, schema: pa.Schema) -> None:
    if not name.endswith(SUFFIXES):
        raise DataError(f"shard {name}: its suffix must be one of {', '.join(SUFFIXES)}")
    for field in schema:
        if pa.types.is_dictionary(field.type):
            raise DataError(
                f"column {field.name}: dictionary columns cannot be cut into blocks; cast it to"
                f" {field.type.value_type}"
            )


def _check_schema(found: pa.Schema, expected: pa.Schema, place: Location) -> None:
    if found.equals(expected):
        return
    for name in [*expected.names, *found.names]:
        there = found.field(name).type if name in found.names else "nothing"
        wanted = expected.field(name).type if name in expected.names else "nothing"
        if there != wanted:
            raise DataError(f"{place}: column {name} holds {there}, the table expects {wanted}")
    raise DataError(
        f"{place}: the columns are {found.names}, the table expects {expected.names} in this order"
        " and with the same nullability"
    )
