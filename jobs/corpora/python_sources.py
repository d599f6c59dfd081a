"""Python source files as bytes: real text that every machine with Python already has.

Names recur over long distances in code, so more context lowers the loss of a language model: that
makes a good corpus for small experiments. Two collections of files:

* `standard_library`: the running interpreter's own, one and two levels deep, without installed
  packages, tests and the tables of `encodings`; about 8.5 MB to train on with CPython 3.11;
* `transformers`: every source file of the installed package of that name, about 53 MB.

A file is on the test side when the MD5 of its base name is a multiple of ten, so that a name is on
the same side whatever the version of Python; MD5 is a hash for sorting here and protects nothing.
Each file is a row: its path, SHA-256, side, and its bytes as tokens of a vocabulary of 256.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import md5, sha256
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from heliostat.data.prepare import Outcome, PreparationKey, code_of, content_of, prepare
from heliostat.data.table import Table
from heliostat.errors import DataError
from heliostat.storage import Location

Collection = Literal["standard_library", "transformers"]
Side = Literal["train", "test"]

COLLECTIONS: tuple[Collection, ...] = ("standard_library", "transformers")
VOCABULARY = 256
"""Every byte is a token."""
SMALLEST_FILE_BYTES = 2048
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.field("item", pa.uint8(), nullable=False)), nullable=False),
    ]
)

_FILES_PER_CHUNK = 128
_EXCLUDED_FOLDERS = frozenset({"site-packages", "dist-packages", "encodings", "__pycache__"})
_TEST_FOLDER = re.compile(r"^(tests?|idle_test|.*_tests?)$")


def python_sources(
    cache: Location,
    side: Side,
    *,
    collection: Collection = "standard_library",
    workers: int = 0,
) -> Table:
    """The table of one side, made at the first call and found in `cache` after it.

    Args:
        cache: Folder of prepared tables.
        side: `train` or `test`.
        collection: Which files.
        workers: Ray workers that read; 0: this process.

    Raises:
        DataError: There are no such files here.
    """
    root = collection_root(collection)
    paths = [path for path in source_files(root, collection) if side_of(path.name) == side]
    if not paths:
        raise DataError(f"{root} holds no Python files of at least {SMALLEST_FILE_BYTES} bytes")
    relative = [path.relative_to(root).as_posix() for path in paths]
    chunks = [
        tuple(relative[start : start + _FILES_PER_CHUNK])
        for start in range(0, len(relative), _FILES_PER_CHUNK)
    ]
    key = PreparationKey(
        content=content_of([Location.of(str(path)) for path in paths]),
        code=code_of(sys.modules[__name__]),
        settings={"collection": collection, "side": side},
    )
    origin = {
        "source": f"{collection} of Python {sys.version.split()[0]}",
        "collection": collection,
        "split": side,
        "vocabulary": str(VOCABULARY),
    }
    return prepare(
        f"python-{collection}-{side}",
        chunks,
        _ReadFiles(str(root), side),
        cache,
        key,
        workers,
        schema=SCHEMA,
        metadata=origin,
    )


def collection_root(collection: Collection) -> Path:
    """The folder of a collection; a DataError when its package is not installed."""
    if collection == "standard_library":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(collection)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the package {collection} is not installed, so its sources are not here")
    return Path(spec.submodule_search_locations[0])


def source_files(root: Path, collection: Collection) -> list[Path]:
    """The files of a collection in the order of their paths."""
    patterns = ("*.py", "*/*.py") if collection == "standard_library" else ("**/*.py",)
    return sorted(
        path
        for pattern in patterns
        for path in root.glob(pattern)
        if not _is_excluded(path.relative_to(root).parts[:-1])
        and path.is_file()
        and path.stat().st_size >= SMALLEST_FILE_BYTES
    )


def side_of(name: str) -> Side:
    """The side of a file by its base name, `NAME.py`."""
    number = int(md5(name.encode(), usedforsecurity=False).hexdigest(), 16)
    return "test" if number % 10 == 0 else "train"


def _is_excluded(folders: Sequence[str]) -> bool:
    return any(name in _EXCLUDED_FOLDERS or _TEST_FOLDER.match(name) for name in folders)


@dataclass(frozen=True)
class _ReadFiles:
    """Turns paths below `root` into one batch of rows."""

    root: str
    side: Side

    def __call__(self, chunk: tuple[str, ...]) -> Iterator[Outcome]:
        texts = [(Path(self.root) / path).read_bytes() for path in chunk]
        tokens = [np.frombuffer(text, dtype=np.uint8) for text in texts]
        columns = [
            pa.array(chunk, pa.string()),
            pa.array([sha256(text).hexdigest() for text in texts], pa.string()),
            pa.array([self.side] * len(texts), pa.string()),
            pa.array(tokens, SCHEMA.field("tokens").type),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
