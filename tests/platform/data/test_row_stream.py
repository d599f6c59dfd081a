"""Rows of a table as samples."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from heliostat.data.stream import RowStream, Stream
from heliostat.data.table import TableWriter
from heliostat.errors import DataError
from heliostat.storage import Location

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.int64()),
        ("weight", pa.float32()),
        ("tokens", pa.list_(pa.uint16())),
        ("pair", pa.list_(pa.float32(), 2)),
        ("image", pa.fixed_shape_tensor(pa.float32(), (2, 3))),
        ("words", pa.list_(pa.string())),
        ("blob", pa.binary()),
    ]
)


def columns(start: int, stop: int) -> dict[str, list[object]]:
    numbers = range(start, stop)
    return {
        "id": [f"r{n}" for n in numbers],
        "label": [n % 5 for n in numbers],
        "weight": [n / 2 for n in numbers],
        "tokens": [None if n == 3 else list(range(n % 4)) for n in numbers],
        "pair": [[n, -n] for n in numbers],
        "words": [[f"w{n}"] for n in numbers],
        "blob": [bytes([n % 256]) for n in numbers],
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """600 rows with every type of column."""
    location = Location.of(tmp_path_factory.mktemp("rows"))
    with TableWriter(location, SCHEMA, {"origin": "made up"}) as writer:
        images = np.arange(600 * 6, dtype=np.float32).reshape(600, 2, 3)
        image = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
        plain = columns(0, 600)
        arrays = [
            image if field.name == "image" else pa.array(plain[field.name], field.type)
            for field in SCHEMA
        ]
        writer.write(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
    return location


def test_values_have_the_types_that_collating_needs(place: Location) -> None:
    stream = RowStream(place, seed=1, shuffle=False)
    samples = stream.samples([2, 3, 599])
    assert [sample["id"] for sample in samples] == ["r2", "r3", "r599"]
    first = samples[0]
    assert (first["label"], first["weight"], first["blob"]) == (2, 1.0, b"\x02")
    assert first["words"] == ["w2"]
    assert first["tokens"].tolist() == [0, 1]
    assert first["tokens"].dtype == np.uint16
    assert first["pair"].tolist() == [2.0, -2.0]
    assert first["image"].shape == (2, 3)
    assert samples[2]["image"][0, 0] == 599 * 6
    assert samples[1]["tokens"] is None
    assert first["tokens"].flags.writeable
    assert first["image"].flags.writeable


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(place: Location) -> None:
    stream = RowStream(place, seed=1)
    assert isinstance(stream, Stream)
    epochs = [
        [sample["id"] for sample in stream.samples(range(start, start + 600))] for start in (0, 600)
    ]
    everything = {f"r{n}" for n in range(600)}
    assert set(epochs[0]) == set(epochs[1]) == everything
    assert epochs[0] != epochs[1]
    across = [sample["id"] for sample in stream.samples(range(590, 610))]
    assert across == epochs[0][-10:] + epochs[1][:10]


def test_head_is_a_prefix_and_smaller_heads_lie_in_larger_ones(place: Location) -> None:
    def ids(head: int) -> set[object]:
        stream = RowStream(place, seed=1, head=head)
        assert stream.epoch_size == head
        return {sample["id"] for sample in stream.samples(range(head))}

    assert ids(50) == {f"r{n}" for n in range(50)}
    assert ids(50) < ids(200)


def test_fingerprints_follow_content_seed_and_head(place: Location) -> None:
    reference = RowStream(place, seed=1)
    assert reference.fingerprint == pickle.loads(pickle.dumps(reference)).fingerprint
    assert reference.fingerprint == RowStream(place, seed=1, head=600).fingerprint
    assert reference.fingerprint == RowStream(place, seed=1, head=9999).fingerprint
    for other in (
        RowStream(place, seed=2),
        RowStream(place, seed=1, shuffle=False),
        RowStream(place, seed=1, head=599),
    ):
        assert other.fingerprint != reference.fingerprint


def test_without_an_id_column_the_row_number_is_the_id(tmp_path) -> None:
    schema = pa.schema([("x", pa.int64())])
    with TableWriter(Location.of(tmp_path), schema, {}) as writer:
        writer.write(pa.RecordBatch.from_pydict({"x": [10, 11, 12]}, schema=schema))
    samples = RowStream(Location.of(tmp_path), seed=4).samples([0, 1, 2])
    assert sorted((sample["id"], sample["x"]) for sample in samples) == [(0, 10), (1, 11), (2, 12)]


def test_demands_on_the_metadata_are_checked(place: Location) -> None:
    assert RowStream(place, seed=1, require={"origin": "made up"}).epoch_size == 600
    with pytest.raises(DataError, match="carries no redactor_version"):
        _ = RowStream(place, seed=1, require={"redactor_version": None}).epoch_size


def test_a_head_of_nothing_is_refused(place: Location) -> None:
    with pytest.raises(DataError, match="head must be at least 1, not 0"):
        _ = RowStream(place, seed=1, head=0).epoch_size
