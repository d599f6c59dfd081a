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

_FILES_PER_CHUNK = 64

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
    relative = [path.relative_to(folder).as_posix() for path in paths]
    chunks = [
        tuple(relative[start : start + _FILES_PER_CHUNK])
        for start in range(0, len(relative), _FILES_PER_CHUNK)
    ]
    key = PreparationKey(
        content=content_of([Location.of(path) for path in paths]),
        code=code_of(sys.modules[__name__]),
        tokenizer=tokenizer,
    )
    return prepare(
        "text-files",
        chunks,
        _ReadFiles(folder, encode),
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
class _ReadFiles:
    """Turns paths below `folder` into rows."""

    folder: Path
    encode: Encode

    def __call__(self, chunk: tuple[str, ...]) -> Iterator[Outcome]:
        texts = [self._content(name) for name in chunk]
        tokens = [
            np.asarray(self.encode(text.decode("utf-8", errors="replace")), dtype=np.uint32)
            for text in texts
        ]
        columns = [
            pa.array(chunk, pa.string()),
            pa.array([sha256(text).hexdigest() for text in texts], pa.string()),
            pa.array(tokens, SCHEMA.field("tokens").type),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    def _content(self, name: str) -> bytes:
        path = self.folder / name
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == COMPRESSED else content
