"""The engine with clients: many requests on one event loop, one model in one thread.

The event loop owns the bookkeeping and the thread the computing, and never both at once: between
two steps the loop takes in what has come and lets go who has left, then the thread computes a step.
So nothing is locked, and the pages of a client that hangs up are free before the next step begins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Protocol

from heliostat.serve.errors import ApiError
from heliostat.serve.generation.core import EngineCore
from heliostat.serve.generation.request import Event, Finished, Produced, Request, Timing
from heliostat.serve.generation.sequence import GeneratedSequence

logger = logging.getLogger(__name__)

STEP_SHARE = 0.2
"""Weight of the newest step in the mean of their durations."""


@dataclass
class EngineStatistics:
    """What an engine has done since it was made."""

    requests: int = 0
    refused: int = 0
    cancelled: int = 0
    steps: int = 0
    tokens: int = 0
    """New tokens."""
    reused_tokens: int = 0
    """Tokens of prompts that were not computed again."""
    seconds_a_step: float = 0.05
    """Recent mean."""


class Observer(Protocol):
    """Hears what an engine does, on its event loop."""

    def ended(self, end: Finished) -> None:
        """A request is over, however it went."""

    def pages(self, held: int, pages: int) -> None:
        """So many pages of the pool are held, after a step."""


class Generation:
    """The events of one request, in order; leaving the block before the end cancels it.

    async with engine.submit(request) as events:
        async for event in events:
            ...
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self.request = request
        self.sequence: GeneratedSequence | None = None
        self._engine = engine
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._is_over = self._is_leaving = False

    async def __aenter__(self) -> Generation:
        """Begin; the request waits already."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the engine forget it, if it is not over."""
        self.cancel()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events as they come, `Finished` last."""
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, Finished):
                return

    def cancel(self) -> None:
        """Give up; frees what it has at once, or when the step that is under way ends."""
        if not (self._is_over or self._is_leaving):
            self._is_leaving = True
            self._engine._cancel(self)

    def hear(self, event: Event) -> None:
        """Take an event for whoever reads; called by the engine."""
        if isinstance(event, Finished) and not self._is_over:
            self._is_over = True
            self._engine._tell(event)
        self._events.put_nowait(event)


class Engine:
    """Serves one model to many clients; all methods belong to one event loop."""

    def __init__(
        self,
        core: EngineCore,
        thread: ThreadPoolExecutor,
        queue: int,
        observer: Observer | None = None,
    ) -> None:
        """Make an engine.

        Args:
            core: the model and its pages; used by nobody else.
            thread: what steps run in; may be shared with other models.
            queue: requests that may wait to be admitted.
            observer: hears how requests end and how full the pool is.
        """
        self._core, self._thread, self._queue = core, thread, queue
        self._observer = observer
        self._incoming: list[Generation] = []
        self._leaving: list[Generation] = []
        self._running: dict[GeneratedSequence, Generation] = {}
        self._is_stepping = False
        self._worker: asyncio.Task[None] | None = None
        self.statistics = EngineStatistics()

    @property
    def waiting(self) -> int:
        """Requests that are not admitted yet."""
        return len(self._incoming) + len(self._core.scheduler.waiting)

    @property
    def running(self) -> int:
        """Requests that hold pages."""
        return len(self._core.scheduler.running)

    @property
    def pages_held(self) -> int:
        """Pages that requests hold."""
        return self._core.scheduler.pool.held

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for it."""
        return not (self._incoming or self._running or self._core.has_work)

    @property
    def bytes_per_token(self) -> int:
        """What a token takes of the cache."""
        return self._core.bytes_per_token

    @property
    def bytes_per_sequence(self) -> int:
        """What a sequence takes of it besides, however long it is."""
        return self._core.bytes_per_sequence

    def status(self) -> dict[str, int | float]:
        """How busy it is, and what it has done; JSON."""
        scheduler = self._core.scheduler
        return {
            "waiting": self.waiting,
            "running": self.running,
            "pages": scheduler.pool.pages,
            "pages_held": scheduler.pool.held,
            "preemptions": scheduler.preemptions,
            **asdict(self.statistics),
        }

    def submit(self, request: Request) -> Generation:
        """Let a request wait for its turn.

        Raises:
            ApiError: 503 when many wait because the pages are used up, 429 when too many wait for
                another reason.
        """
        if self.waiting >= self._queue:
            self.statistics.refused += 1
            wait_s = max(1.0, self.waiting * self.statistics.seconds_a_step)
            if self._core.scheduler.is_short_of_pages:
                raise ApiError(503, "the cache of the model is full", retry_after_s=wait_s)
            raise ApiError(429, "too many requests wait", code="queue_full", retry_after_s=wait_s)
        generation = Generation(self, request)
        self.statistics.requests += 1
        self._incoming.append(generation)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return generation

    def _cancel(self, generation: Generation) -> None:
        self.statistics.cancelled += 1
        self._leaving.append(generation)
        if not self._is_stepping:
            self._let_go()

    async def _work(self) -> None:
        """Step until nothing is left to do."""
        while True:
            self._take_in()
            if not self._core.has_work:
                return
            self._is_stepping = True
            began = time.perf_counter()
            try:
                events = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._core.step
                )
            except Exception:
                logger.exception("the engine failed; all its requests end")
                self._end_all()
                continue
            finally:
                self._is_stepping = False
            self._note(events, time.perf_counter() - began)
            for sequence, event in events:
                self._running[sequence].hear(event)
                if isinstance(event, Finished):
                    del self._running[sequence]
            self._let_go()
            if self._observer is not None:
                pool = self._core.scheduler.pool
                self._observer.pages(pool.held, pool.pages)

    def _tell(self, end: Finished) -> None:
        if self._observer is not None:
            self._observer.ended(end)

    def _take_in(self) -> None:
        for generation in self._incoming:
            generation.sequence = self._core.add(generation.request)
            self._running[generation.sequence] = generation
        self._incoming.clear()

    def _let_go(self) -> None:
        for generation in self._leaving:
            sequence = generation.sequence
            if sequence in self._running:
                generation.hear(self._core.cancel(sequence))
                del self._running[sequence]
            elif generation in self._incoming:
                self._incoming.remove(generation)
                generation.hear(_unbegun(generation.request))
        self._leaving.clear()

    def _end_all(self) -> None:
        for sequence, generation in self._running.items():
            if self._core.has(sequence):
                self._core.cancel(sequence)
            generation.hear(sequence.finished("error", "something broke here"))
        self._running.clear()

    def _note(self, events: list[tuple[GeneratedSequence, Event]], seconds: float) -> None:
        statistics = self.statistics
        statistics.steps += 1
        statistics.seconds_a_step += STEP_SHARE * (seconds - statistics.seconds_a_step)
        for _, event in events:
            if isinstance(event, Produced):
                statistics.tokens += 1
            elif isinstance(event, Finished):
                statistics.reused_tokens += event.reused_tokens


def _unbegun(request: Request) -> Finished:
    return Finished("cancelled", "", len(request.prompt), 0, 0, Timing(0.0, 0.0, 0.0))
