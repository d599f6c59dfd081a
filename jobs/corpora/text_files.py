"""Text files of a folder as documents of token ids, prepared once for each tokenizer.

Plain text and Markdown, compressed by gzip or not. A file is a row: its path, SHA-256 of its text,
and its tokens.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa

from heliostat.data.prepare import Outcome, PreparationKey, code_of, content_of, prepare
from heliostat.data.table import Table
from heliostat.errors import DataError
from heliostat.storage import Location

KINDS = (".txt", ".md")
COMPRESSED = ".gz"
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.field("item", pa.uint32(), nullable=False)), nullable=False),
    ]
)

Encode = Callable[[str], Sequence[int]]


def text_files(folder: Path, encode: Encode, *, tokenizer: str, cache: Location) -> Table:
    """The table of a folder, made at the first call and found in `cache` after it.

    Args:
        folder: is searched with all folders below it.
        encode: text to token ids.
        tokenizer: stands for `encode`.
        cache: folder of prepared tables.

    Raises:
        DataError: the folder holds no text file.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and _kind(path) in KINDS)
    if not paths:
        raise DataError(
            f"{folder} holds no text: expected files that end in {' or '.join(KINDS)}, also with "
            f"{COMPRESSED} behind it"
        )
    key = PreparationKey(
        content=content_of([Location.of(path) for path in paths]),
        code=code_of(sys.modules[__name__]),
        tokenizer=tokenizer,
    )
    return prepare(
        "text-files",
        [path.relative_to(folder).as_posix() for path in paths],
        _ReadFile(folder, encode),
        cache,
        key,
        0,
        schema=SCHEMA,
        metadata={"source": f"{len(paths)} text files of {folder}"},
    )


def _kind(path: Path) -> str:
    """The ending that says what is inside."""
    inner = Path(path.stem) if path.suffix == COMPRESSED else path
    return inner.suffix


@dataclass(frozen=True)
class _ReadFile:
    """Turns a path below `folder` into one row."""

    folder: Path
    encode: Encode

    def __call__(self, relative: str) -> Iterator[Outcome]:
        path = self.folder / relative
        content = path.read_bytes()
        if path.suffix == COMPRESSED:
            content = gzip.decompress(content)
        text = content.decode("utf-8", errors="replace")
        tokens = np.asarray(self.encode(text), dtype=np.uint32)
        columns = [
            pa.array([relative], pa.string()),
            pa.array([sha256(content).hexdigest()], pa.string()),
            pa.array([tokens], SCHEMA.field("tokens").type),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
