"""Documents of bytes as the pieces of a tokenizer that was learnt from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from heliostat.data.table import Table, TableWriter
from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.corpora.pieces import as_pieces, learn_pieces

TEXTS = [
    "def first(value):\n    return value\n" * 40,
    "def second(value):\n    return first(value)  # größer, <|endoftext|>\n" * 40,
    *(f"name_{number} = {number}\n" * 3 for number in range(300)),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    place = Location.of(tmp_path_factory.mktemp("bytes") / "table")
    schema = pa.schema([pa.field("path", pa.string()), pa.field("tokens", pa.list_(pa.uint8()))])
    with TableWriter(place, schema, {"source": "made"}) as writer:
        for number, text in enumerate(TEXTS):
            tokens = pa.array([np.frombuffer(text.encode(), np.uint8)], schema.field(1).type)
            writer.write(pa.record_batch({"path": [f"{number}.py"], "tokens": tokens}))
    return Table.open(place)


def test_every_document_comes_back_from_its_pieces(table: Table, tmp_path: Path) -> None:
    cache = Location.of(tmp_path)
    codec = learn_pieces(table, 400, cache)
    assert codec.vocab_size == 400
    pieces = as_pieces(table, codec, cache)
    assert pieces.column("path").to_pylist() == table.column("path").to_pylist()
    tokens = pieces.column("tokens").to_pylist()
    assert [codec.tokenizer.decode(ids) for ids in tokens] == TEXTS
    assert sum(map(len, tokens)) < sum(len(text.encode()) for text in TEXTS) / 2
    # Nothing that a file says ends its document.
    assert all(codec.end_of_text not in ids and codec.pad not in ids for ids in tokens)


def test_it_is_learnt_and_done_once(table: Table, tmp_path: Path) -> None:
    cache = Location.of(tmp_path)
    first = learn_pieces(table, 300, cache)
    (kept,) = [file for file in cache.list() if file.name.startswith("bpe-")]
    kept.write_text(first.json_text.replace('{"version":', '{ "version":'))
    again = learn_pieces(table, 300, cache)
    assert again.json_text != first.json_text
    assert as_pieces(table, first, cache).location == as_pieces(table, first, cache).location
    assert as_pieces(table, first, cache).location != as_pieces(table, again, cache).location


def test_documents_with_too_few_pieces_are_named(table: Table, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gives only [\d,]+ pieces, but 60,000 are asked for"):
        learn_pieces(table, 60_000, Location.of(tmp_path))
