"""From a chunk of raw input to a shard and a record of it, here or on a Ray cluster.

A part, `parts/NNNNNN.json`, is written after its shard: a chunk with a part is finished, whatever
happened to the process that made it. Doing a chunk again writes the same bytes.
"""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Generic, Protocol, TypeAlias, TypeVar

import pyarrow as pa

from heliostat.data.manifest import Shard
from heliostat.data.writer import ShardWriter
from heliostat.errors import DataError, Fault, UserError
from heliostat.storage import Location

PARTS = "parts"
_MOST_TASKS = 10_000

C = TypeVar("C")
ChunkIn = TypeVar("ChunkIn", contravariant=True)


@dataclass(frozen=True)
class Rejected:
    """Rows that a transform left out; they are counted by reason in the table's metadata."""

    reason: str
    rows: int = 1


Outcome: TypeAlias = pa.RecordBatch | Rejected


class Transform(Protocol[ChunkIn]):
    """Makes rows of a chunk; picklable, and kept from chunk to chunk by each worker process."""

    def __call__(self, chunk: ChunkIn, /) -> Iterator[Outcome]:
        """Yield batches of rows, and `Rejected` for rows that were left out."""
        ...


@dataclass(frozen=True)
class Part:
    """What a finished chunk gave."""

    chunk: int
    shard: Shard
    rejected: dict[str, int]

    def to_json(self) -> str:
        """The part as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Part:
        """The part that `to_json` wrote."""
        value = json.loads(text)
        return cls(value["chunk"], Shard.from_json(value["shard"]), value["rejected"])


@dataclass(frozen=True)
class Work(Generic[C]):
    """How to do any chunk; sent to every worker once."""

    folder: Location
    schema: pa.Schema
    transform: Transform[C]

    def do(self, number: int, chunk: C) -> Part:
        """Write the shard of a chunk, then its part."""
        rejected: Counter[str] = Counter()
        with ShardWriter(self.folder, f"chunk-{number:06d}.arrow", self.schema) as writer:
            for outcome in self.transform(chunk):
                if isinstance(outcome, Rejected):
                    rejected[outcome.reason] += outcome.rows
                else:
                    writer.write(outcome)
        part = Part(number, writer.close(), dict(rejected))
        (self.folder / PARTS / f"{number:06d}.json").write_text(part.to_json())
        return part


def do_here(work: Work[C], chunks: Mapping[int, C]) -> Iterator[Part]:
    """Do the chunks one after another in this process."""
    for number, chunk in chunks.items():
        yield work.do(number, chunk)


def do_on_ray(work: Work[C], chunks: Mapping[int, C], concurrency: int) -> Iterator[Part]:
    """Do the chunks in up to `concurrency` tasks of one CPU; parts come as they are finished."""
    import ray
    import ray.data
    from ray import cloudpickle

    from heliostat.cluster.ray_cluster import connect

    if not ray.is_initialized():
        connect()
    # Tasks, not actors: Ray 2.60 complains on the console of every actor of Ray Data that has
    # arguments. What is costly to load is kept by `_unpickled` instead.
    with _quiet_ray_data():
        numbers = ray.data.from_items(
            [{"chunk": number} for number in chunks],
            override_num_blocks=min(len(chunks), _MOST_TASKS),
        )
        answers = numbers.map(
            _answer,
            fn_args=(cloudpickle.dumps((work, dict(chunks))),),
            compute=ray.data.TaskPoolStrategy(size=min(concurrency, len(chunks))),
            num_cpus=1,
        )
        for answer in answers.iter_rows():
            if answer["fault"]:
                raise Fault(answer["fault"])
            if answer["mistake"]:
                raise DataError(answer["mistake"])
            yield Part.from_json(answer["part"])


def _answer(row: dict[str, int], pickled: bytes) -> dict[str, str]:
    """Do a chunk in a Ray task. Errors go back as text, so that the user sees a sentence."""
    answer = {"part": "", "mistake": "", "fault": ""}
    number = int(row["chunk"])
    try:
        work, chunks = _unpickled(pickled)
        answer["part"] = work.do(number, chunks[number]).to_json()
    except UserError as error:
        answer["mistake"] = str(error)
    except Exception:
        answer["fault"] = f"chunk {number} failed:\n{traceback.format_exc()}"
    return answer


@lru_cache(maxsize=1)
def _unpickled(pickled: bytes) -> tuple[Work[object], dict[int, object]]:
    """The work, kept by the worker process from task to task, so a transform may load lazily."""
    work, chunks = pickle.loads(pickled)
    return work, chunks


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Leave progress to us, and let a chunk take as long as it takes."""
    from ray.data import DataContext

    context = DataContext.get_current()
    wanted: dict[str, object] = {
        "enable_progress_bars": False,
        "enable_operator_progress_bars": False,
        "print_on_execution_start": False,
        # Ray 2.60 gives up when no task ends for 30 minutes, and a chunk is one task.
        "execution_no_progress_timeout_s": -1,
    }
    before = {name: getattr(context, name) for name in wanted}
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.ERROR)
    for name, value in wanted.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


def finished_parts(folder: Location, chunks: Sequence[object]) -> dict[int, Part]:
    """The parts on record, after checking that they belong to as many chunks as there are now."""
    place = folder / PARTS / "chunks"
    if not place.exists():
        place.write_text(str(len(chunks)))
    elif int(place.read_text()) != len(chunks):
        raise DataError(
            f"{folder} was begun with {place.read_text()} chunks, and now there are {len(chunks)}:"
            " the preparation key must cover the input"
        )
    records = [file for file in (folder / PARTS).list() if file.name.endswith(".json")]
    parts = [Part.from_json(file.read_text()) for file in records]
    return {part.chunk: part for part in parts}
