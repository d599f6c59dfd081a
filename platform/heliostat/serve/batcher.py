"""Dynamic batching: requests that wait together are computed together.

A batch begins when the model is free. It takes what waits, oldest first, up to a number of items
and of tokens. It waits for more, `wait_s` at most, only where it follows the last batch within as
long and fewer are there than that one had: a client alone is never kept waiting, and clients that
answer each other's batches find each other again. The wait ends as soon as nobody has come for a
fifth of that time: those who answer a batch come close together, and for anybody else it is better
to compute than to wait. (Wait time and size are the usual two limits; that the wait depends on the
last batch and on the pause is ours.)

One bad item fails alone: when a batch raises, its items are computed one by one. An item whose
client has gone leaves the queue at once. The queue is limited in length and in time: what the last
batches foretell to be answered too late is refused at once, so that what was accepted keeps its
latency. All methods belong to one event loop. The model runs in one thread, so it never runs twice
at the same time; a batch that is known to be short runs on the loop itself, where no thread waits
for the interpreter's lock between its many small operations.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from heliostat.serve.durations import Durations
from heliostat.serve.errors import too_busy

Item = TypeVar("Item")
Result = TypeVar("Result")

PAUSE = 0.2
"""Share of the longest wait after which nobody else is waited for."""
READ_TURNS = 4
"""Turns of the event loop between two batches: answers go out, and what clients sent meanwhile is
read, passes the gate and joins the queue."""


@dataclass(frozen=True)
class BatchLimits:
    """How much is computed at a time, and how much may wait."""

    items: int
    tokens: int
    wait_s: float
    queue: int
    """Items that may wait; one more is refused."""
    answer_s: float = float("inf")
    """An item whose answer is foretold to take longer is refused, unless none waits."""
    on_loop_s: float = 0.0
    """A batch that is foretold to take no longer is computed on the event loop."""


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    cost: int
    future: asyncio.Future[Result]


@dataclass
class BatchStatistics:
    """What a batcher has done since it was made."""

    batches: int = 0
    items: int = 0
    refused: int = 0
    abandoned: int = 0
    """Items whose client went before they were computed."""
    last_size: int = 0
    seconds_a_batch: float = field(default=0.05)
    """Recent mean, of which a batch can raise a fifth at most."""
    items_a_batch: float = 1.0
    """Recent mean."""


class Batcher(Generic[Item, Result]):
    """Batches the calls of one model."""

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        limits: BatchLimits,
        thread: ThreadPoolExecutor,
        observe: Callable[[int], None] = lambda size: None,
        durations: Durations | None = None,
    ) -> None:
        """Make a batcher.

        Args:
            compute: the model; blocking.
            limits: of a batch and of the queue.
            thread: what `compute` runs in; shared by the versions of a model.
            observe: told the size of every batch.
            durations: of batches, as far as they are known.
        """
        self._compute, self._limits, self._thread = compute, limits, thread
        self._observe = observe
        self._queue: deque[_Waiting[Item, Result]] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._answered = float("-inf")
        """When the answers of the last batch had gone out, on the clock of the loop."""
        self._durations = durations or Durations()
        self.statistics = BatchStatistics()
        if self._durations.shortest is not None:
            self.statistics.seconds_a_batch = self._durations.shortest

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return len(self._queue)

    def refusal_s(self, coming: int = 0) -> float | None:
        """Seconds after which to come again, where one more item would wait too long; else None.

        Args:
            coming: admitted items that are not in the queue yet.
        """
        waiting = len(self._queue) + coming
        foretold = self._foretold_s(waiting)
        is_full = waiting >= self._limits.queue
        return foretold if is_full or (waiting and foretold > self._limits.answer_s) else None

    def admit(self, coming: int = 0) -> None:
        """Refuse an item that would wait too long; raises `ApiError` 503."""
        come_again_s = self.refusal_s(coming)
        if come_again_s is not None:
            self.statistics.refused += 1
            raise too_busy(come_again_s)

    async def submit(self, item: Item, cost: int) -> Result:
        """The model's result for an item that was admitted."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        entry = _Waiting(item, cost, future)
        self._queue.append(entry)
        self._arrived.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await future
        except asyncio.CancelledError:
            if entry in self._queue:
                self.statistics.abandoned += 1
                self._queue.remove(entry)
            raise

    def _foretold_s(self, waiting: int) -> float:
        """Seconds until one more item would be answered: the batch under way, then those ahead.

        A larger batch than the recent ones is taken to cost in proportion. Where it costs less,
        more is admitted, batches grow, and the foretelling with them.
        """
        recent = self.statistics
        return recent.seconds_a_batch * (1 + max(1.0, (waiting + 1) / recent.items_a_batch))

    async def _work(self) -> None:
        """Compute batches until nothing waits."""
        while self._queue:
            await self._gather()
            batch = self._take()
            if not batch:
                continue
            tokens = sum(entry.cost for entry in batch)
            is_on_loop = self._durations.foretold_s(tokens) <= self._limits.on_loop_s
            began = time.perf_counter()
            await self._run(batch, None if is_on_loop else self._thread)
            seconds = time.perf_counter() - began
            self._durations.note(tokens, seconds)
            self._note(len(batch), seconds)
            for _ in range(READ_TURNS):
                await asyncio.sleep(0)
            self._answered = asyncio.get_running_loop().time()

    async def _gather(self) -> None:
        """Wait a little for as many as last time, if that was just now and they keep coming."""
        now = asyncio.get_running_loop().time()
        if now > self._answered + self._limits.wait_s:
            return
        hoped = min(self.statistics.last_size, self._limits.items)
        until = now + self._limits.wait_s
        while len(self._queue) < hoped:
            self._arrived.clear()
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                return
            try:
                await asyncio.wait_for(self._arrived.wait(), min(left, PAUSE * self._limits.wait_s))
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        tokens = 0
        while self._queue and len(batch) < self._limits.items:
            entry = self._queue[0]
            if entry.future.done():
                # Gone, but its task has not run since.
                self.statistics.abandoned += 1
                self._queue.popleft()
                continue
            if batch and tokens + entry.cost > self._limits.tokens:
                break
            tokens += entry.cost
            batch.append(self._queue.popleft())
        return batch

    async def _run(
        self, batch: list[_Waiting[Item, Result]], thread: ThreadPoolExecutor | None
    ) -> None:
        """Compute a batch in the thread; None: here."""
        items = [entry.item for entry in batch]
        try:
            results = await self._call(items, thread)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0].future, error)
                return
            for entry in batch:
                if not entry.future.done():
                    await self._run([entry], thread)
            return
        for entry, result in zip(batch, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(result)

    async def _call(
        self, items: Sequence[Item], thread: ThreadPoolExecutor | None
    ) -> Sequence[Result]:
        if thread is None:
            results = self._compute(items)
        else:
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(thread, self._compute, items)
        if len(results) != len(items):
            raise RuntimeError(f"the model gave {len(results)} results for {len(items)} items")
        return results

    def _note(self, size: int, seconds: float) -> None:
        statistics = self.statistics
        statistics.batches += 1
        statistics.items += size
        statistics.last_size = size
        # A single stall of the machine must not make the next second refuse everything.
        bounded = min(seconds, 2 * statistics.seconds_a_batch)
        statistics.seconds_a_batch += 0.2 * (bounded - statistics.seconds_a_batch)
        statistics.items_a_batch += 0.2 * (size - statistics.items_a_batch)
        self._observe(size)


def _fail(future: asyncio.Future[Result], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
