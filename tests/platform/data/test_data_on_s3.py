"""Tables, streams and preparations on an S3 server give what they give on a disk."""

from __future__ import annotations

import numpy as np
import pytest

from heliostat.data.reader import StreamReader, batch_plan
from heliostat.data.stream import PackedStream, RowStream
from heliostat.data.table import Table
from heliostat.errors import DataError
from heliostat.storage import Location


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    """3,000 short documents."""
    random = np.random.default_rng(2)
    return [random.integers(2, 60_000, random.integers(0, 30)).tolist() for _ in range(3000)]


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_a_table_on_s3_reads_like_a_local_one(
    s3_bucket: Location, write_documents, documents, tmp_path, suffix
) -> None:
    local = write_documents(Location.of(tmp_path), documents, rows_per_shard=1100, suffix=suffix)
    there = write_documents(s3_bucket / "t", documents, rows_per_shard=1100, suffix=suffix)
    assert there.fingerprint == local.fingerprint
    indices = np.random.default_rng(1).integers(0, 3000, 300)
    assert there.take(indices).equals(local.take(indices))
    assert there.column("tokens").to_pylist() == documents
    assert np.array_equal(there.lengths("tokens"), local.lengths("tokens"))
    there.verify()


def test_streams_on_s3_give_the_same_samples(
    s3_bucket: Location, write_documents, documents, tmp_path
) -> None:
    here, there = Location.of(tmp_path), s3_bucket / "t"
    for place in (here, there):
        write_documents(place, documents)
    packed = [PackedStream(place, 64, 7, end_of_text=0, pad=1) for place in (here, there)]
    rows = [RowStream(place, 7) for place in (here, there)]
    assert packed[0].fingerprint == packed[1].fingerprint
    assert rows[0].fingerprint == rows[1].fingerprint
    positions = [0, 5, packed[0].epoch_size - 1, packed[0].epoch_size + 9]
    for one, two in zip(packed[0].samples(positions), packed[1].samples(positions), strict=True):
        assert one["input_ids"].tolist() == two["input_ids"].tolist()
    for one, two in zip(rows[0].samples(positions), rows[1].samples(positions), strict=True):
        assert one["id"] == two["id"]
        assert one["tokens"].tolist() == two["tokens"].tolist()


def test_a_reader_resumes_from_s3(s3_bucket: Location, write_documents, documents) -> None:
    write_documents(s3_bucket, documents)
    stream = RowStream(s3_bucket, seed=7)
    make = {"plan_at": lambda step: batch_plan(60, 60, 1), "rank": 0}

    def ids(samples) -> list[object]:
        return [sample["id"] for sample in samples]

    with StreamReader(stream, **make, collate=ids) as reader:
        whole = [reader.next_step() for _ in range(6)]
    with StreamReader(stream, **make, collate=ids, position=180) as reader:
        assert [reader.next_step() for _ in range(3)] == whole[3:]


def test_a_missing_shard_on_s3_is_named(s3_bucket: Location, write_documents, documents) -> None:
    write_documents(s3_bucket / "t", documents, rows_per_shard=1000)
    (s3_bucket / "t" / "shard-00001.arrow").delete()
    with pytest.raises(DataError, match=r"is incomplete: shard-00001\.arrow is missing"):
        Table.open(s3_bucket / "t")


def test_memory_for_blocks_from_s3_is_bounded(
    s3_bucket: Location, write_documents, documents
) -> None:
    write_documents(s3_bucket, documents)
    table = Table.open(s3_bucket, cache_bytes=30_000)
    for start in range(0, 3000, 200):
        table.take(range(start, start + 200))
        assert table._blocks.weight <= 30_000
