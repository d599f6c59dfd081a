"""Tables: what goes in comes out, in any order, and what is not whole is refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.data.manifest import MANIFEST
from heliostat.data.table import ShardWriter, Table, TableWriter, commit_table
from heliostat.errors import DataError
from heliostat.storage import Location

SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string()), ("list", pa.list_(pa.int32()))])


def rows(start: int, stop: int) -> pa.RecordBatch:
    """Rows whose content follows from their number."""
    numbers = range(start, stop)
    columns = {
        "id": list(numbers),
        "text": [None if n % 7 == 0 else f"row {n}" for n in numbers],
        "list": [None if n % 5 == 0 else list(range(n % 11)) for n in numbers],
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def write(location: Location, count: int, suffix: str, rows_per_shard: int = 1000) -> Table:
    """A table of `count` rows from batches of uneven size."""
    with TableWriter(location, SCHEMA, {"made": "here"}, rows_per_shard, suffix) as writer:
        start = 0
        for size in (1, 300, 255, 256, 257, 2000):
            writer.write(rows(start, min(count, start + size)))
            start = min(count, start + size)
        writer.write(rows(start, count))
    return Table.open(location)


@pytest.fixture(params=[".arrow", ".parquet"], scope="module")
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Table:
    """3,500 rows in four shards."""
    return write(Location.of(tmp_path_factory.mktemp("table")), 3500, request.param)


@settings(deadline=None, max_examples=30)
@given(indices=st.lists(st.integers(0, 3499), max_size=400))
def test_take_gives_the_rows_in_the_order_asked(table: Table, indices: list[int]) -> None:
    expected = rows(0, 3500).take(pa.array(indices, pa.int64()))
    assert table.take(indices).to_pylist() == expected.to_pylist()


def test_the_table_is_what_was_written(table: Table) -> None:
    assert table.rows == 3500
    assert table.schema == SCHEMA
    assert table.metadata == {"made": "here"}
    assert len(table.manifest.shards) == 4
    assert table.take(np.arange(3500)).to_pylist() == rows(0, 3500).to_pylist()
    for name in SCHEMA.names:
        assert table.column(name).to_pylist() == rows(0, 3500).column(name).to_pylist()


def test_lengths_are_those_of_the_lists(table: Table) -> None:
    lists = rows(0, 3500).column("list").to_pylist()
    assert table.lengths("list").tolist() == [len(item or []) for item in lists]
    with pytest.raises(DataError, match="column text holds no lists"):
        table.lengths("text")


def test_rows_outside_the_table_are_refused(table: Table) -> None:
    for index in (-1, 3500):
        with pytest.raises(IndexError, match="rows go from 0 to 3499"):
            table.take([index])


def test_an_unknown_column_is_named_with_those_there_are(table: Table) -> None:
    with pytest.raises(DataError, match="no column tokens; it has id, text, list"):
        table.column("tokens")


def test_a_table_is_pickled_by_its_place(table: Table) -> None:
    data = pickle.dumps(table)
    assert len(data) < 500
    assert pickle.loads(data).take([17]).to_pylist() == rows(17, 18).to_pylist()


def test_few_blocks_are_kept_when_little_memory_is_allowed(table: Table) -> None:
    small = Table.open(table.location, cache_bytes=20_000)
    for start in range(0, 3500, 100):
        small.take(range(start, start + 100))
    assert small._blocks.weight <= max(20_000, 64 << 10)


def test_the_fingerprint_follows_content_and_order_only(tmp_path) -> None:
    here = Location.of(tmp_path)
    one = write(here / "one", 1200, ".arrow")
    same = write(here / "same", 1200, ".arrow")
    fewer = write(here / "fewer", 1199, ".arrow")
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != fewer.fingerprint
    shards = list(one.manifest.shards)
    swapped = commit_table(one.location, shards[::-1], SCHEMA, {"made": "there"})
    assert swapped.fingerprint != one.fingerprint
    assert swapped.take([0]).to_pylist() == rows(1000, 1001).to_pylist()


def test_shards_written_apart_are_committed_as_one_table(tmp_path) -> None:
    here = Location.of(tmp_path)
    shards = []
    for number in (1, 0):
        with ShardWriter(here, f"part-{number}.arrow", SCHEMA) as writer:
            writer.write(rows(number * 700, (number + 1) * 700))
        shards.append(writer.close())
    assert not (here / MANIFEST).exists()
    table = commit_table(here, shards[::-1], SCHEMA, {})
    assert table.take(np.arange(1400)).to_pylist() == rows(0, 1400).to_pylist()


def test_a_write_that_fails_leaves_nothing(tmp_path) -> None:
    place = Location.of(tmp_path) / "table"

    def write_and_fail() -> None:
        with TableWriter(place, SCHEMA, {}, rows_per_shard=100) as writer:
            writer.write(rows(0, 250))
            raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_and_fail()
    assert list(place.local_path.iterdir()) == []


def test_a_table_is_not_overwritten(tmp_path) -> None:
    table = write(Location.of(tmp_path), 10, ".arrow")
    with pytest.raises(DataError, match="already holds a table"):
        TableWriter(table.location, SCHEMA, {})


def test_an_empty_table_has_no_rows(tmp_path) -> None:
    table = write(Location.of(tmp_path), 0, ".arrow")
    assert table.rows == 0
    assert table.take([]).num_rows == 0
    assert table.column("text").to_pylist() == []


def test_batches_with_another_schema_are_refused_by_column(tmp_path) -> None:
    wrong = pa.RecordBatch.from_pydict({"id": ["a"], "text": ["b"], "list": [[1]]})
    with (
        pytest.raises(DataError, match="column id holds string, the table expects int64"),
        TableWriter(Location.of(tmp_path), SCHEMA, {}) as writer,
    ):
        writer.write(wrong)


def test_dictionary_columns_are_refused_before_anything_is_written(tmp_path) -> None:
    schema = pa.schema([("word", pa.dictionary(pa.int32(), pa.string()))])
    with pytest.raises(DataError, match=r"column word: .* cast it to string"):
        TableWriter(Location.of(tmp_path), schema, {})


def test_a_folder_without_manifest_is_no_table(tmp_path) -> None:
    with pytest.raises(DataError, match=r"it has no dataset\.json \(its preparation did not"):
        Table.open(Location.of(tmp_path))
    with pytest.raises(DataError, match=r"no dataset\.json \(no such folder\)"):
        Table.open(Location.of(tmp_path) / "none")


def damage_missing(place: Location) -> None:
    (place / "shard-00001.arrow").delete()


def damage_short(place: Location) -> None:
    file = place / "shard-00001.arrow"
    file.write_bytes(file.read_bytes()[:-1])


def damage_manifest(place: Location) -> None:
    file = place / MANIFEST
    file.write_bytes(file.read_bytes()[:-100])


def damage_version(place: Location) -> None:
    document = json.loads((place / MANIFEST).read_text())
    (place / MANIFEST).write_text(json.dumps({**document, "version": 9}))


def damage_order(place: Location) -> None:
    document = json.loads((place / MANIFEST).read_text())
    document["shards"].reverse()
    (place / MANIFEST).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_missing, r"is incomplete: shard-00001\.arrow is missing"),
        (damage_short, r"shard-00001\.arrow is damaged: \d+ bytes, expected \d+"),
        (damage_manifest, r"dataset\.json is not a readable manifest"),
        (damage_version, "expected heliostat table version 1, found"),
        (damage_order, "its fingerprint does not match its shards"),
    ],
)
def test_a_table_that_is_not_whole_is_refused(tmp_path, damage, sentence) -> None:
    table = write(Location.of(tmp_path), 2500, ".arrow")
    damage(table.location)
    with pytest.raises(DataError, match=sentence):
        Table.open(table.location)


def test_verify_finds_a_changed_byte(tmp_path) -> None:
    table = write(Location.of(tmp_path), 2500, ".arrow")
    table.verify()
    file = table.location.local_path / "shard-00002.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    reopened = Table.open(table.location)
    with pytest.raises(DataError, match=r"shard-00002\.arrow is damaged"):
        reopened.verify()
