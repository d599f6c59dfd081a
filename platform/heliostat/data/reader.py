"""Reading a stream on one rank of many, ahead of time, with a position that any rank can resume.

The only state is the position in the global stream and the number of steps done. A step takes the
samples of its global batch from there on; sample i of these goes to rank i mod world size, so the
samples of a step, and with them the sequence of steps, are the same on any number of ranks. A
thread reads and collates a few steps ahead; an error in it is raised where the step is asked for.

Evaluation reads every sample of one epoch exactly once, in as many batches on every rank.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Generic, NamedTuple, Self, TypeVar

from heliostat.errors import ConfigError, DataError

if TYPE_CHECKING:
    from heliostat.data.stream import Sample, Stream

T = TypeVar("T")

PREFETCHED_STEPS = 2
_POLL_S = 0.1


@dataclass(frozen=True)
class BatchPlan:
    """How the global batch of a step is cut."""

    global_batch: int
    """Samples in a step, over all ranks."""
    micro_batch: int
    """Samples in one forward pass on one rank."""
    world_size: int
    accumulation: int
    """Forward passes on each rank in a step."""


class EvaluationBatch(NamedTuple):
    """Samples to evaluate on this rank."""

    samples: list[Sample]
    """Never empty, so a forward pass can always be made."""
    is_filler: bool
    """The rank has run out: these samples belong to another and must count nothing."""


def batch_plan(global_batch: int, micro_batch: int, world_size: int) -> BatchPlan:
    """Cut the global batch, or raise a ConfigError that names the nearest ones that can be cut."""
    values = {"batch": global_batch, "micro_batch": micro_batch, "workers": world_size}
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    at_once = micro_batch * world_size
    if global_batch % at_once == 0:
        return BatchPlan(global_batch, micro_batch, world_size, global_batch // at_once)
    below = global_batch // at_once * at_once
    ways_out = f"batch {_either(below, below + at_once)}"
    if global_batch % world_size == 0:
        share = global_batch // world_size
        divisors = [size for size in range(1, share + 1) if share % size == 0]
        smaller = max(size for size in divisors if size <= micro_batch)
        larger = min((size for size in divisors if size > micro_batch), default=0)
        ways_out += f", or micro_batch {_either(smaller, larger)}"
    raise ConfigError(
        f"batch {global_batch} cannot be cut into micro batches of {micro_batch} on"
        f" {_counted(world_size, 'worker')} ({_counted(at_once, 'sample')} at a time); nearest is"
        f" {ways_out}"
    )


def step_positions(plan: BatchPlan, rank: int, position: int) -> list[list[int]]:
    """For a step that starts at `position` the stream positions of each micro batch of a rank."""
    mine = range(position + rank, position + plan.global_batch, plan.world_size)
    cuts = range(0, len(mine), plan.micro_batch)
    return [list(mine[cut : cut + plan.micro_batch]) for cut in cuts]


def evaluation_batches(
    stream: Stream, batch: int, rank: int, world_size: int
) -> Iterator[EvaluationBatch]:
    """Every sample of the stream's first epoch exactly once over all ranks.

    All ranks get the same number of batches, since a sharded model needs them all for every
    forward pass; a rank that has run out gets a filler.
    """
    size = stream.epoch_size
    mine = range(rank, size, world_size)
    longest = -(-size // world_size)
    for start in range(0, longest, batch):
        chosen = mine[start : start + batch]
        yield EvaluationBatch(stream.samples(list(chosen) or [0]), is_filler=not chosen)


class StreamReader(Generic[T]):
    """The steps of one rank. Give it back with `close`, or use it in a `with` block."""

    def __init__(
        self,
        stream: Stream,
        *,
        plan_at: Callable[[int], BatchPlan],
        rank: int,
        collate: Callable[[Sequence[Sample]], T],
        step: int = 0,
        position: int = 0,
        prefetched_steps: int = PREFETCHED_STEPS,
    ) -> None:
        """Read from where a training stands.

        Args:
            stream: what to read.
            plan_at: how the global batch of a step (1 for the first) is cut.
            rank: of this worker.
            collate: makes a micro batch of samples.
            step: steps done.
            position: in the stream, where the next step begins.
            prefetched_steps: steps that are read ahead.
        """
        self.stream = stream
        self.plan_at = plan_at
        self.rank = rank
        self.collate = collate
        self.step = step
        self.position = position
        self.prefetched_steps = prefetched_steps
        self.data_wait_s = 0.0
        """Seconds that `next_step` has waited for data so far."""
        self._thread: Thread | None = None
        self._stop = Event()
        self._queue: Queue[list[T] | _Failure] = Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[list[T]]:
        while True:
            yield self.next_step()

    def next_step(self) -> list[T]:
        """The collated micro batches of this rank for the next step."""
        began = time.perf_counter()
        if self._thread is None:
            self._start()
        item = self._queue.get()
        self.data_wait_s += time.perf_counter() - began
        if isinstance(item, _Failure):
            self.close()
            raise item.error
        self.step += 1
        self.position += self.plan_at(self.step).global_batch
        return item

    def state(self) -> dict[str, int | str]:
        """Where the next step starts, and in which stream; the same on every rank."""
        return {
            "step": self.step,
            "position": self.position,
            "fingerprint": self.stream.fingerprint,
        }

    def load(self, state: Mapping[str, int | str]) -> None:
        """Go to where a `state` was taken, by any number of ranks; a DataError for other data."""
        if state["fingerprint"] != self.stream.fingerprint:
            raise DataError(
                "the training data changed since the checkpoint: its stream has the fingerprint"
                f" {str(state['fingerprint'])[:12]}, this one {self.stream.fingerprint[:12]}"
                " (content, seed, order and sequence length must be equal)"
            )
        self.close()
        self.step, self.position = int(state["step"]), int(state["position"])

    def close(self) -> None:
        """Stop reading ahead. The position stays, and `next_step` would start again from there."""
        self._stop.set()
        if self._thread is not None:
            with suppress(Empty):
                # Make room, so that the thread need not wait until it looks at the event.
                self._queue.get_nowait()
            self._thread.join()
            self._thread = None

    def _start(self) -> None:
        self._stop = Event()
        self._queue = Queue(maxsize=self.prefetched_steps)
        # The thread holds no reference to the reader, so a forgotten reader ends its thread.
        weakref.finalize(self, self._stop.set)
        self._thread = Thread(
            target=_produce,
            name=f"stream-reader-{self.rank}",
            args=(self.stream, self.plan_at, self.rank, self.step, self.position, self.collate),
            kwargs={"queue": self._queue, "stop": self._stop},
            daemon=True,
        )
        self._thread.start()


class _Failure(NamedTuple):
    error: BaseException


def _produce(
    stream: Stream,
    plan_at: Callable[[int], BatchPlan],
    rank: int,
    step: int,
    position: int,
    collate: Callable[[Sequence[Sample]], T],
    *,
    queue: Queue[list[T] | _Failure],
    stop: Event,
) -> None:
    while not stop.is_set():
        item: list[T] | _Failure
        try:
            step += 1
            plan = plan_at(step)
            micro_batches = step_positions(plan, rank, position)
            # One request for the whole step: blocks that micro batches share are read once.
            samples = stream.samples([at for positions in micro_batches for at in positions])
            cuts = range(0, len(samples), plan.micro_batch)
            item = [collate(samples[cut : cut + plan.micro_batch]) for cut in cuts]
        except BaseException as error:
            item = _Failure(error)
        _put(queue, item, stop)
        if isinstance(item, _Failure):
            return
        position += plan.global_batch


def _put(queue: Queue[T], item: T, stop: Event) -> None:
    while not stop.is_set():
        try:
            queue.put(item, timeout=_POLL_S)
        except Full:
            continue
        return


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _either(first: int, second: int) -> str:
    return " or ".join(str(value) for value in (first, second) if value > 0)
