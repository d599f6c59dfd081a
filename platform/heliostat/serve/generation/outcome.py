"""From the events of requests to answers: all of one at once, or those of several as they come.

Whoever waits for a whole answer also watches the connection: a client that hangs up ends its
requests, and their pages are free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from heliostat.serve.errors import ApiError
from heliostat.serve.generation.engine import Generation
from heliostat.serve.generation.request import Event, Finished, Produced, Scored, TokenLogprob

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest


@dataclass
class Outcome:
    """All that one request came to."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the new tokens, when they were asked for."""
    scores: list[TokenLogprob] = field(default_factory=list)
    """Of the prompt's tokens but the first, when they were asked for."""
    end: Finished | None = None

    def add(self, event: Event) -> None:
        """Take an event in."""
        if isinstance(event, Produced):
            self.tokens.append(event.token)
            self.text += event.text
            if event.logprob is not None:
                self.logprobs.append(event.logprob)
        elif isinstance(event, Scored):
            self.scores += event.logprobs
        else:
            self.text += event.text
            self.end = event

    @property
    def finished(self) -> Finished:
        """The end, which has come."""
        assert self.end is not None
        return self.end


async def outcomes(generations: Sequence[Generation], http: HttpRequest) -> list[Outcome]:
    """What requests come to, in order.

    Raises:
        ApiError: 499 when the client hangs up, 500 when one of them could not be computed.
    """
    waiting = asyncio.create_task(_all_of(generations))
    gone = asyncio.create_task(_client_gone(http))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ApiError(499, "the client has gone")
        return waiting.result()
    finally:
        for task in (waiting, gone):
            task.cancel()
        for generation in generations:
            generation.cancel()


async def _all_of(generations: Sequence[Generation]) -> list[Outcome]:
    found = [Outcome() for _ in generations]
    async for index, event in merged(generations):
        check(event)
        found[index].add(event)
    return found


async def merged(generations: Sequence[Generation]) -> AsyncIterator[tuple[int, Event]]:
    """Events of several requests as they come, each with the number of its request.

    Leaving before the end cancels them all.
    """
    ready: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    async def forward(index: int, events: Generation) -> None:
        async for event in events:
            ready.put_nowait((index, event))

    async with AsyncExitStack() as stack:
        tasks = []
        for index, generation in enumerate(generations):
            events = await stack.enter_async_context(generation)
            tasks.append(asyncio.create_task(forward(index, events)))
        left = len(generations)
        try:
            while left:
                index, event = await ready.get()
                left -= isinstance(event, Finished)
                yield index, event
        finally:
            for task in tasks:
                task.cancel()


def check(event: Event) -> None:
    """Raise `ApiError` for the end of a request that could not be computed."""
    if isinstance(event, Finished) and event.reason == "error":
        raise ApiError(500, event.error or "something broke here")


async def _client_gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
