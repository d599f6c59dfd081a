"""Tables: rows in Arrow or Parquet shards, read block by block from a disk or an object store.

Local Arrow shards are mapped into memory and nothing is copied. From a URI, and for Parquet, blocks
(record batches or row groups) are fetched when they are asked for, several at a time, and the ones
used most recently are kept. A table is opened by its manifest, which is written last; a folder
without one, or with a file missing or of the wrong size, is refused.

A table knows no order but its own, and no samples: see `heliostat.data.stream`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from heliostat.data.cache import Recent
from heliostat.data.manifest import Manifest, Shard, load_manifest, save_manifest
from heliostat.data.writer import ShardWriter, TableWriter
from heliostat.errors import DataError
from heliostat.retry import with_retries
from heliostat.storage import Location, digest

__all__ = ["Shard", "ShardWriter", "Table", "TableWriter", "commit_table"]

Indices = npt.NDArray[np.int64]
ReadBlock = Callable[[int], pa.RecordBatch]

CACHE_BYTES = 256 << 20
_MAPPED_BLOCK_BYTES = 64 << 10
"""What a mapped block counts in the cache: its pages belong to the system, not to us."""
_OPEN_SHARDS = 64
_PARALLEL_READS = 8


def commit_table(
    location: Location, shards: Sequence[Shard], schema: pa.Schema, metadata: Mapping[str, str]
) -> Table:
    """Make a table of shards that `ShardWriter`s wrote, in the given order."""
    return Table(location, save_manifest(location, shards, schema, metadata), CACHE_BYTES)


class Table:
    """A committed table; open one with `Table.open`. Pickled by its location."""

    def __init__(self, location: Location, manifest: Manifest, cache_bytes: int) -> None:
        self.location = location
        self.manifest = manifest
        self.cache_bytes = cache_bytes
        self._readers: Recent[int, ReadBlock] = Recent(_OPEN_SHARDS)
        self._blocks: Recent[int, pa.RecordBatch] = Recent(cache_bytes)

    @classmethod
    def open(cls, location: Location, cache_bytes: int = CACHE_BYTES) -> Table:
        """Open a table after checking that its files are there; at most `cache_bytes` are kept."""
        return cls(location, load_manifest(location), cache_bytes)

    def __reduce__(self) -> tuple[Callable[[Location, int], Table], tuple[Location, int]]:
        return (Table.open, (self.location, self.cache_bytes))

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self._row_starts[-1])

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return self.manifest.schema

    @cached_property
    def fingerprint(self) -> str:
        """Stands for the content: schema, shards and their order."""
        return self.manifest.fingerprint

    @property
    def metadata(self) -> dict[str, str]:
        """What the writer noted."""
        return self.manifest.metadata

    def verify(self) -> None:
        """Read every file and compare its SHA-256; a DataError names the first that differs."""
        for file in (file for shard in self.manifest.shards for file in shard.files):
            if digest(self.location / file.name) != file.sha256:
                raise DataError(f"{self.location / file.name} is damaged: its SHA-256 differs")

    def take(self, indices: Sequence[int] | Indices) -> pa.Table:
        """The rows with these numbers, in this order; each block is touched once."""
        wanted = np.asarray(indices, dtype=np.int64)
        blocks, offsets = self.locate(wanted)
        by_block = np.argsort(blocks, kind="stable")
        numbers, starts = np.unique(blocks[by_block], return_index=True)
        groups = np.split(offsets[by_block], starts[1:])
        found = [
            batch.take(pa.array(group))
            for batch, group in zip(self.read_blocks(numbers.tolist()), groups, strict=False)
        ]
        table = pa.Table.from_batches(found, schema=self.schema)
        if np.array_equal(by_block, np.arange(len(wanted))):
            return table.combine_chunks()
        back = np.empty_like(by_block)
        back[by_block] = np.arange(len(wanted))
        return table.combine_chunks().take(pa.array(back))

    def column(self, name: str) -> pa.ChunkedArray:
        """A whole column."""
        self._check_column(name)
        index = self.schema.get_field_index(name)
        chunks = [
            chunk
            for shard in self.manifest.shards
            for chunk in self._shard_column(shard, index).chunks
        ]
        return pa.chunked_array(chunks, type=self.schema.field(index).type)

    def lengths(self, name: str) -> npt.NDArray[np.uint32]:
        """The length of the list in every row of a column, without reading the lists."""
        self._check_column(name)
        parts = [np.empty(0, "<u4")]
        for shard in self.manifest.shards:
            if name not in shard.lengths:
                raise DataError(f"{self.location}: column {name} holds no lists")
            data = (self.location / shard.lengths[name].name).read_bytes()
            parts.append(np.frombuffer(data, dtype="<u4"))
        return np.concatenate(parts)

    def locate(self, rows: Indices) -> tuple[Indices, Indices]:
        """For each row the number of its block in the table and its place in the block."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.rows):
            raise IndexError(f"{self.location}: rows go from 0 to {self.rows - 1}")
        shards = np.searchsorted(self._row_starts, rows, side="right") - 1
        blocks, offsets = np.divmod(rows - self._row_starts[shards], self._block_rows[shards])
        return blocks + self._block_starts[shards], offsets

    def read_blocks(self, numbers: Sequence[int]) -> list[pa.RecordBatch]:
        """Some blocks; those that are not kept are fetched side by side from an object store."""
        if self.location.is_local or sum(n not in self._blocks for n in numbers) < 2:
            return [self.block(number) for number in numbers]
        with ThreadPoolExecutor(max_workers=_PARALLEL_READS) as pool:
            return list(pool.map(self.block, numbers))

    def block(self, number: int) -> pa.RecordBatch:
        """One block, kept for a while."""
        return self._blocks.get(number, self._read_block, self._weigh)

    @cached_property
    def _row_starts(self) -> Indices:
        return np.cumsum([0, *(shard.rows for shard in self.manifest.shards)], dtype=np.int64)

    @cached_property
    def _block_starts(self) -> Indices:
        return np.cumsum([0, *(shard.blocks for shard in self.manifest.shards)], dtype=np.int64)

    @cached_property
    def _block_rows(self) -> Indices:
        return np.array([shard.rows_per_block for shard in self.manifest.shards], dtype=np.int64)

    def _weigh(self, block: pa.RecordBatch) -> int:
        return _MAPPED_BLOCK_BYTES if self.location.is_local else int(block.nbytes)

    def _read_block(self, number: int) -> pa.RecordBatch:
        shard = int(np.searchsorted(self._block_starts, number, side="right")) - 1

        def read() -> pa.RecordBatch:
            try:
                reader = self._readers.get(shard, self._open_shard)
                return reader(number - int(self._block_starts[shard]))
            except OSError:
                self._readers.drop(shard)
                raise

        name = self.manifest.shards[shard].file.name
        return with_retries(read, str(self.location / name))

    def _open_shard(self, number: int) -> ReadBlock:
        place = self.location / self.manifest.shards[number].file.name
        if place.name.endswith(".parquet"):
            parquet = pq.ParquetFile(place.open_input())
            return lambda index: _single_batch(parquet.read_row_group(index))
        reader = pa.ipc.open_file(_open_for_arrow(place))
        return lambda index: reader.get_batch(index)

    def _shard_column(self, shard: Shard, index: int) -> pa.ChunkedArray:
        place = self.location / shard.file.name

        def read() -> pa.ChunkedArray:
            if place.name.endswith(".parquet"):
                return pq.ParquetFile(place.open_input()).read([self.schema.names[index]])[0]
            options = pa.ipc.IpcReadOptions(included_fields=[index])
            return pa.ipc.open_file(_open_for_arrow(place), options=options).read_all()[0]

        return with_retries(read, str(place))

    def _check_column(self, name: str) -> None:
        if name not in self.schema.names:
            raise DataError(
                f"{self.location} has no column {name}; it has {', '.join(self.schema.names)}"
            )


def _open_for_arrow(place: Location) -> pa.NativeFile:
    if place.is_local:
        return pa.memory_map(str(place.local_path))
    return place.open_input()


def _single_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]
