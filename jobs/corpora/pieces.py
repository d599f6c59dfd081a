"""A table of bytes once more, as the pieces of a tokenizer; and a tokenizer learnt from one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from heliostat.data.prepare import Outcome, PreparationKey, code_of, prepare
from heliostat.data.table import Table
from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.corpora import tokenizer
from jobs.corpora.tokenizer import TextCodec, codec_of, train_tokenizer

_ROWS_PER_CHUNK = 128


def learn_pieces(table: Table, vocab_size: int, cache: Location) -> TextCodec:
    """A byte-level BPE of the documents of a table of bytes, learnt once.

    Args:
        table: with a column `tokens` of bytes.
        vocab_size: pieces, the 256 bytes and two special tokens included.
        cache: folder of what was prepared.

    Raises:
        DataError: the documents have fewer pieces than that.
    """
    kept = cache / f"bpe-{table.fingerprint[:16]}-{code_of(tokenizer)[:8]}-{vocab_size}.json"
    if kept.exists():
        return codec_of(kept.read_text(), kept.uri)
    chunks = (_texts(table, rows) for rows in _chunks(table))
    codec = train_tokenizer((text for chunk in chunks for text in chunk), vocab_size)
    if codec.vocab_size != vocab_size:
        raise DataError(
            f"{table.location.uri} gives only {codec.vocab_size:,} pieces, but {vocab_size:,} are "
            "asked for"
        )
    kept.write_text(codec.json_text)
    return codec


def as_pieces(table: Table, codec: TextCodec, cache: Location, *, workers: int = 0) -> Table:
    """The documents of a table of bytes as tokens of a tokenizer, prepared once.

    Args:
        table: with columns `path`, and `tokens` of bytes.
        codec: the tokenizer.
        cache: folder of prepared tables.
        workers: Ray workers; 0: this process.
    """
    key = PreparationKey(
        content=table.fingerprint,
        code=code_of(sys.modules[__name__], tokenizer),
        tokenizer=codec.fingerprint,
    )
    return prepare(
        "pieces",
        _chunks(table),
        _Encode(table, codec),
        cache,
        key,
        workers,
        schema=_schema(codec),
        metadata={**table.metadata, "vocabulary": str(codec.vocab_size)},
    )


def _schema(codec: TextCodec) -> pa.Schema:
    """As narrow as the tokens allow."""
    kind = pa.uint16() if codec.vocab_size <= 2**16 else pa.uint32()
    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("tokens", pa.list_(pa.field("item", kind, nullable=False)), nullable=False),
        ]
    )


def _chunks(table: Table) -> list[tuple[int, int]]:
    """First and last row, the last one excluded."""
    starts = range(0, table.rows, _ROWS_PER_CHUNK)
    return [(start, min(start + _ROWS_PER_CHUNK, table.rows)) for start in starts]


def _texts(table: Table, rows: tuple[int, int]) -> list[str]:
    tokens = table.take(range(*rows)).column("tokens")
    read = [np.asarray(row.values, dtype=np.uint8).tobytes() for row in tokens]
    return [text.decode("utf-8", errors="replace") for text in read]


@dataclass(frozen=True)
class _Encode:
    """Turns rows into one batch."""

    table: Table
    codec: TextCodec

    def __call__(self, chunk: tuple[int, int]) -> Iterator[Outcome]:
        schema = _schema(self.codec)
        encoded: Sequence[Sequence[int]] = self.codec.encode(_texts(self.table, chunk))
        columns = [
            self.table.take(range(*chunk)).column("path").combine_chunks(),
            pa.array(list(map(np.asarray, encoded)), schema.field("tokens").type),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
