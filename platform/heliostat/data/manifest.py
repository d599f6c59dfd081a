"""The manifest `dataset.json` of a table: which shards belong to it, with their sizes and digests.

It is written last, in one atomic step, so a folder with a manifest is a whole table and a folder
without one is not. Nothing here reads rows.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from heliostat.errors import DataError
from heliostat.storage import Location

MANIFEST = "dataset.json"
_FORMAT = "heliostat table"
_VERSION = 1


@dataclass(frozen=True)
class File:
    """A file of the table as it must be found."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One file of rows. All its blocks hold `rows_per_block` rows, but for the last."""

    file: File
    rows: int
    rows_per_block: int
    """Rows in a record batch (Arrow) or row group (Parquet)."""
    lengths: dict[str, File] = field(default_factory=dict)
    """For every list column a file with the length of each list, as little-endian uint32."""

    @property
    def blocks(self) -> int:
        """The number of record batches or row groups."""
        return -(-self.rows // self.rows_per_block)

    @property
    def files(self) -> list[File]:
        """Every file of the shard."""
        return [self.file, *self.lengths.values()]

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Shard:
        """The shard that `asdict` made plain."""
        plain: dict[str, object] = dict(value)
        plain["file"] = File(**plain["file"])  # type: ignore[arg-type]
        lengths: Mapping[str, dict[str, object]] = plain["lengths"]  # type: ignore[assignment]
        plain["lengths"] = {name: File(**item) for name, item in lengths.items()}  # type: ignore[arg-type]
        return cls(**plain)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Manifest:
    """What a table consists of."""

    schema: pa.Schema
    shards: tuple[Shard, ...]
    metadata: dict[str, str]

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return sum(shard.rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Equal for tables with the same schema and byte-equal shards in the same order."""
        total = hashlib.sha256(self.schema.serialize().to_pybytes())
        for shard in self.shards:
            total.update(f"{shard.rows} {shard.file.sha256}\n".encode())
        return total.hexdigest()


def save_manifest(
    location: Location, shards: Sequence[Shard], schema: pa.Schema, metadata: Mapping[str, str]
) -> Manifest:
    """Check that the shards are there, then make the folder a table."""
    manifest = Manifest(schema=schema, shards=tuple(shards), metadata=dict(metadata))
    check_files(location, manifest)
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "fingerprint": manifest.fingerprint,
        "rows": manifest.rows,
        "columns": {item.name: str(item.type) for item in schema},
        "schema": base64.b64encode(schema.serialize().to_pybytes()).decode("ascii"),
        "metadata": manifest.metadata,
        "shards": [asdict(shard) for shard in manifest.shards],
    }
    (location / MANIFEST).write_text(json.dumps(document, indent=1) + "\n")
    return manifest


def load_manifest(location: Location) -> Manifest:
    """Read the manifest and check that every file is there with its size; else a DataError."""
    place = location / MANIFEST
    if not place.exists():
        reason = "its preparation did not finish" if location.exists() else "no such folder"
        raise DataError(f"{location} is not a table: it has no {MANIFEST} ({reason})")
    try:
        document = json.loads(place.read_text())
        known = (document["format"], document["version"])
        if known != (_FORMAT, _VERSION):
            raise DataError(f"{place}: expected {_FORMAT} version {_VERSION}, found {known}")
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(document["schema"])))
        shards = tuple(Shard.from_json(shard) for shard in document["shards"])
        manifest = Manifest(schema=schema, shards=shards, metadata=document["metadata"])
        recorded = document["fingerprint"]
    except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{place} is not a readable manifest: {error!r}") from error
    if recorded != manifest.fingerprint:
        raise DataError(f"{place} was changed: its fingerprint does not match its shards")
    check_files(location, manifest)
    return manifest


def check_files(location: Location, manifest: Manifest) -> None:
    """Raise a DataError unless every file of the table is there with the size on record."""
    sizes = location.sizes()
    for file in (file for shard in manifest.shards for file in shard.files):
        found = sizes.get(file.name)
        if found is None:
            raise DataError(f"{location} is incomplete: {file.name} is missing")
        if found != file.bytes:
            raise DataError(
                f"{location / file.name} is damaged: {found} bytes, expected {file.bytes}"
            )
