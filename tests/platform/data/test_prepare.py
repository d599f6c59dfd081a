"""Preparations: once, in parallel, resumable, flat in memory, nothing dropped in silence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from heliostat.data import manifest, order
from heliostat.data.prepare import (
    Outcome,
    PreparationKey,
    Progress,
    Rejected,
    code_of,
    content_of,
    prepare,
    prepared_folder,
)
from heliostat.data.table import Table
from heliostat.errors import ConfigError, DataError, Fault
from heliostat.storage import Location, temporary_path

SCHEMA = pa.schema([("id", pa.int64()), ("tokens", pa.list_(pa.uint16()))])
KEY = PreparationKey(content="c", code="1", tokenizer="t", settings={"limit": 5})


@dataclass(frozen=True)
class Squares:
    """Ten rows for a chunk, of which those divisible by seven are rejected; leaves a trace."""

    trace: Path

    def __call__(self, chunk: int, /) -> Iterator[Outcome]:
        (self.trace / f"{chunk}-{os.getpid()}-{time.monotonic_ns()}").touch()
        numbers = [n for n in range(chunk * 10, chunk * 10 + 10) if n % 7]
        tokens = [[n % 100] * (n % 3) for n in numbers]
        yield pa.RecordBatch.from_pydict({"id": numbers, "tokens": tokens}, schema=SCHEMA)
        yield Rejected("divisible by seven", 10 - len(numbers))

    def chunks_done(self) -> list[int]:
        """The chunk of each call so far, sorted."""
        return sorted(int(path.name.split("-")[0]) for path in self.trace.iterdir())


@dataclass(frozen=True)
class Broken:
    """Fails on chunk 3."""

    error: Exception

    def __call__(self, chunk: int, /) -> Iterator[Outcome]:
        if chunk == 3:
            raise self.error
        yield pa.RecordBatch.from_pydict({"id": [chunk], "tokens": [[1]]}, schema=SCHEMA)


@pytest.fixture
def squares(tmp_path: Path) -> Squares:
    """A transform and the folder of its traces."""
    (tmp_path / "trace").mkdir()
    return Squares(tmp_path / "trace")


def make(output, transform, chunks: int = 12, key=KEY, concurrency: int = 0, **more) -> Table:
    return prepare(
        "squares",
        range(chunks),
        transform,
        Location.of(output),
        key,
        concurrency,
        schema=SCHEMA,
        metadata={"redactor_version": "3"},
        **more,
    )


@pytest.mark.parametrize("concurrency", [0, 2])
def test_rows_are_in_the_order_of_the_chunks_and_rejected_ones_are_counted(
    request: pytest.FixtureRequest, tmp_path, squares, concurrency
) -> None:
    if concurrency:
        request.getfixturevalue("ray_cluster")
    told: list[Progress] = []
    table = make(tmp_path / "out", squares, concurrency=concurrency, progress=told.append)
    expected = [n for n in range(120) if n % 7]
    assert table.column("id").to_pylist() == expected
    assert json.loads(table.metadata["rejected"]) == {"divisible by seven": 120 - len(expected)}
    assert table.metadata["redactor_version"] == "3"
    assert squares.chunks_done() == list(range(12))
    assert (told[-1].done, told[-1].chunks, told[-1].rows) == (12, 12, len(expected))
    assert told[-1].rejected == 120 - len(expected)


def test_on_ray_and_in_this_process_the_table_is_the_same(ray_cluster, tmp_path, squares) -> None:
    here = make(tmp_path / "here", squares)
    there = make(tmp_path / "there", squares, concurrency=3)
    assert here.fingerprint == there.fingerprint


def test_the_same_key_is_found_again_and_another_is_made_anew(tmp_path, squares) -> None:
    first = make(tmp_path / "out", squares, chunks=3)
    assert make(tmp_path / "out", squares, chunks=3).fingerprint == first.fingerprint
    assert squares.chunks_done() == [0, 1, 2]
    other = PreparationKey(content="c", code="2", tokenizer="t", settings={"limit": 5})
    assert make(tmp_path / "out", squares, chunks=3, key=other).location != first.location
    assert squares.chunks_done() == [0, 0, 1, 1, 2, 2]


def test_any_part_of_the_key_changes_it(tmp_path: Path) -> None:
    keys = {
        PreparationKey("c", "1", "t", {"limit": 5, "b": 1}).digest(),
        PreparationKey("d", "1", "t", {"limit": 5, "b": 1}).digest(),
        PreparationKey("c", "2", "t", {"limit": 5, "b": 1}).digest(),
        PreparationKey("c", "1", "u", {"limit": 5, "b": 1}).digest(),
        PreparationKey("c", "1", "t", {"limit": 6, "b": 1}).digest(),
    }
    assert len(keys) == 5
    assert PreparationKey("c", "1", "t", {"b": 1, "limit": 5}).digest() in keys
    assert code_of(order) != code_of(order, manifest)
    file = Location.of(tmp_path) / "raw.txt"
    file.write_text("one")
    before = content_of([file])
    file.write_text("two")
    assert content_of([file]) != before


def test_a_table_that_is_there_is_found_in_two_seconds_without_ray(tmp_path, squares) -> None:
    make(tmp_path / "out", squares, chunks=200)
    code = (
        "import sys, time; began = time.monotonic()\n"
        "import pyarrow as pa\n"
        "from heliostat.data.prepare import PreparationKey, prepare\n"
        "from heliostat.storage import Location\n"
        "key = PreparationKey('c', '1', 't', {'limit': 5})\n"
        f"table = prepare('squares', range(200), None, Location.of({str(tmp_path / 'out')!r}),"
        " key, 4, schema=None, metadata={})\n"
        "assert table.rows == 1714, table.rows\n"
        "assert 'ray' not in sys.modules\n"
        "assert time.monotonic() - began < 2\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("concurrency", [0, 2])
def test_a_broken_chunk_stops_with_its_reason_and_the_others_are_kept(
    request: pytest.FixtureRequest, tmp_path, squares, concurrency
) -> None:
    if concurrency:
        request.getfixturevalue("ray_cluster")
    mistake = DataError("cases.parquet: role 'robot' of case 17 is unknown")
    with pytest.raises(DataError, match=r"^cases\.parquet: role 'robot' of case 17 is unknown$"):
        make(tmp_path / "out", Broken(mistake), chunks=5, concurrency=concurrency)
    with pytest.raises((ZeroDivisionError, Fault), match="division"):
        make(tmp_path / "out", Broken(ZeroDivisionError("division")), 5, concurrency=concurrency)
    made = {3, *range(5)} - set(squares.chunks_done())
    table = make(tmp_path / "out", squares, chunks=5, concurrency=concurrency)
    assert 3 in made
    assert 0 not in squares.chunks_done()
    assert table.metadata["redactor_version"] == "3"


def test_a_key_that_does_not_cover_the_input_is_noticed(tmp_path, squares) -> None:
    with pytest.raises(DataError):
        make(tmp_path / "out", Broken(DataError("no")), chunks=5)
    with pytest.raises(DataError, match="begun with 5 chunks, and now there are 6"):
        make(tmp_path / "out", squares, chunks=6)


def test_a_negative_concurrency_is_refused(tmp_path, squares) -> None:
    with pytest.raises(ConfigError, match="concurrency must be at least 0, not -1"):
        make(tmp_path / "out", squares, concurrency=-1)


def test_chunks_without_rows_leave_no_shard(tmp_path) -> None:
    def nothing(chunk: int, /) -> Iterator[Outcome]:
        if chunk == 1:
            yield pa.RecordBatch.from_pydict({"id": [7], "tokens": [[1]]}, schema=SCHEMA)
        yield Rejected("empty")

    table = make(tmp_path / "out", nothing, chunks=3)
    assert table.column("id").to_pylist() == [7]
    assert json.loads(table.metadata["rejected"]) == {"empty": 3}
    assert len(table.manifest.shards) == 1


PREPARE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_prepare import Squares, make, slowly
make(Path(sys.argv[2]), slowly(Squares(Path(sys.argv[3]))), chunks=40, concurrency=int(sys.argv[4]))
"""


@dataclass(frozen=True)
class slowly:  # noqa: N801
    """A transform that takes a while for each chunk."""

    transform: Squares

    def __call__(self, chunk: int, /) -> Iterator[Outcome]:
        for outcome in self.transform(chunk):
            time.sleep(0.05)
            yield outcome


def start_preparing(tmp_path: Path, concurrency: int) -> subprocess.Popen[bytes]:
    """Prepare 40 slow chunks in another process."""
    folder = Path(__file__).parent
    places = [str(folder), str(tmp_path / "out"), str(tmp_path / "trace"), str(concurrency)]
    # Ray's workers import the transform by name, as they do in a job.
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, *places],
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


def wait_for_parts(tmp_path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until some chunks are on record."""
    parts = prepared_folder("squares", Location.of(tmp_path / "out"), KEY) / "parts"
    deadline = time.monotonic() + 120
    while len(parts.list()) <= count:
        assert process.poll() is None, "the preparation ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "concurrency", [0, pytest.param(2, marks=pytest.mark.slow)], ids=["here", "ray"]
)
def test_after_kill_9_only_the_missing_chunks_are_done(tmp_path, squares, concurrency) -> None:
    process = start_preparing(tmp_path, concurrency)
    wait_for_parts(tmp_path, 8, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    folder = prepared_folder("squares", Location.of(tmp_path / "out"), KEY)
    assert not (folder / manifest.MANIFEST).exists()
    finished = sorted(int(p.name[:6]) for p in (folder / "parts").list() if p.name != "chunks")
    orphan = temporary_path(folder.local_path / "chunk-000039.arrow")
    orphan.write_bytes(b"half a shard")
    for trace in squares.trace.iterdir():
        trace.unlink()
    table = make(tmp_path / "out", squares, chunks=40)
    assert len(finished) >= 8
    done = squares.chunks_done()
    assert set(done).isdisjoint(finished)
    if not concurrency:
        # On Ray, workers outlive their driver for a moment and may still finish a chunk.
        assert done == sorted(set(range(40)) - set(finished))
    assert table.column("id").to_pylist() == [n for n in range(400) if n % 7]
    rejected = json.loads(table.metadata["rejected"])
    assert rejected == {"divisible by seven": len(range(0, 400, 7))}
    assert not orphan.exists()
    assert table.fingerprint == make(tmp_path / "again", squares, chunks=40).fingerprint


def test_two_processes_that_prepare_the_same_share_the_work(tmp_path, squares) -> None:
    processes = [start_preparing(tmp_path, 0) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert squares.chunks_done() == list(range(40))


MEASURE = """
import resource, sys
import numpy as np, pyarrow as pa
from pathlib import Path
from heliostat.data.prepare import PreparationKey, prepare
from heliostat.storage import Location

schema = pa.schema([("tokens", pa.list_(pa.uint16()))])
values = np.random.default_rng(0).integers(0, 60_000, 500_000).astype(np.uint16)

def transform(chunk):
    for _ in range(10):
        offsets = pa.array(np.arange(0, len(values) + 1, 500), pa.int32())
        lists = pa.ListArray.from_arrays(offsets, pa.array(values))
        yield pa.RecordBatch.from_arrays([lists], schema=schema)

table = prepare("big", range(int(sys.argv[1])), transform, Location.of(sys.argv[2]),
                PreparationKey("c", "1"), 0, schema=schema, metadata={})
print(table.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """A chunk is 10 MB in ten batches: 40 of them need hardly more than two."""
    peaks = []
    for chunks in (2, 40):
        place = str(tmp_path / str(chunks))
        output = subprocess.run(
            [sys.executable, "-c", MEASURE, str(chunks), place], check=True, capture_output=True
        ).stdout.split()
        assert int(output[0]) == chunks * 10_000
        peaks.append(int(output[1]))
    assert peaks[1] < peaks[0] + 40, f"peak memory in MiB for 20 and 400 MB: {peaks}"


def test_a_preparation_can_lie_on_an_object_store(s3_bucket: Location, squares) -> None:
    table = make(s3_bucket / "prepared", squares)
    assert table.column("id").to_pylist() == [n for n in range(120) if n % 7]
    assert make(s3_bucket / "prepared", squares).fingerprint == table.fingerprint
    assert squares.chunks_done() == list(range(12))
    assert np.array_equal(table.lengths("tokens"), [n % 3 for n in range(120) if n % 7])
