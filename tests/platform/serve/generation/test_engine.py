"""The engine on an event loop: many clients, some of whom leave."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from tiny_lm import greedy, tiny_decoder, tiny_lm

from heliostat.serve.errors import ApiError
from heliostat.serve.generation.byte_codec import ByteCodec
from heliostat.serve.generation.core import EngineCore
from heliostat.serve.generation.engine import Engine, Generation
from heliostat.serve.generation.request import Finished, Produced, Request, Sampling

GREEDY = Sampling(temperature=0.0)
THREAD = ThreadPoolExecutor(1)


def engine_of(queue: int = 32, **sizes: int) -> Engine:
    return Engine(EngineCore(tiny_lm(**sizes), ByteCodec(), chunk=16), THREAD, queue)


def wait_for(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


async def tokens_of(generation: Generation) -> tuple[list[int], Finished]:
    tokens = []
    async with generation as events:
        async for event in events:
            if isinstance(event, Produced):
                tokens.append(event.token)
            elif isinstance(event, Finished):
                return tokens, event
    raise AssertionError("no end")


def test_many_clients_at_once_each_get_their_own_completion() -> None:
    async def work() -> None:
        engine, decoder = engine_of(), tiny_decoder()
        prompts = [tuple(range(i, 3 * i + 2)) for i in range(20)]
        found = await asyncio.gather(
            *(tokens_of(engine.submit(Request(one, 10, GREEDY))) for one in prompts)
        )
        for prompt, (tokens, end) in zip(prompts, found, strict=True):
            assert tokens == greedy(decoder, list(prompt), 10)[0]
            assert (end.reason, end.completion_tokens) == ("length", 10)
            assert end.timing.queue_s >= 0
            assert end.timing.decode_s > 0
        assert (engine.pages_held, engine.waiting, engine.running) == (0, 0, 0)
        assert engine.statistics.tokens == 200
        # It stands still when there is nothing to do, and wakes again.
        await asyncio.sleep(0.05)
        again, _ = await tokens_of(engine.submit(Request(prompts[3], 10, GREEDY)))
        assert again == found[3][0]

    wait_for(work())


def test_a_client_that_leaves_frees_its_pages_while_others_go_on() -> None:
    async def work() -> None:
        engine = engine_of()
        stays = asyncio.create_task(tokens_of(engine.submit(Request((1, 2, 3), 60, GREEDY))))
        leaves = engine.submit(Request(tuple(range(200)), 100, GREEDY))
        seen = 0
        async with leaves as events:
            async for event in events:
                seen += isinstance(event, Produced)
                if seen == 3:
                    break
        async with asyncio.timeout(5):
            while engine.running > 1:
                await asyncio.sleep(0)
        assert engine.pages_held <= 4
        unread = engine.submit(Request((5,), 50, GREEDY))
        unread.cancel()
        tokens, end = await stays
        assert (len(tokens), end.reason) == (60, "length")
        assert engine.pages_held == 0
        assert engine.statistics.cancelled == 2

    wait_for(work())


def test_a_task_that_is_cancelled_leaves_no_pages() -> None:
    async def work() -> None:
        engine = engine_of()
        tasks = [
            asyncio.create_task(tokens_of(engine.submit(Request((i,) * 40, 300, GREEDY))))
            for i in range(6)
        ]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5):
            while engine.running or engine.waiting:
                await asyncio.sleep(0)
        assert engine.pages_held == 0

    wait_for(work())


@pytest.mark.parametrize(
    ("sizes", "status", "code"),
    [
        ({"sequences": 2}, 429, "queue_full"),
        ({"sequences": 8, "pages": 26}, 503, "overloaded"),
    ],
)
def test_a_full_queue_refuses_at_once(sizes: dict[str, int], status: int, code: str) -> None:
    async def work() -> None:
        engine = engine_of(queue=3, **sizes)
        prompt = tuple(range(200))
        tasks = [
            asyncio.create_task(tokens_of(engine.submit(Request((i, *prompt), 100, GREEDY))))
            for i in range(3)
        ]
        await asyncio.sleep(0.05)
        while engine.waiting < 3:
            tasks.append(asyncio.create_task(tokens_of(engine.submit(Request(prompt, 90, GREEDY)))))
            await asyncio.sleep(0)
        with pytest.raises(ApiError) as refused:
            engine.submit(Request(prompt, 5, GREEDY))
        assert (refused.value.status, refused.value.code) == (status, code)
        assert refused.value.retry_after_s is not None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    wait_for(work())


def test_a_fault_of_the_engine_ends_its_requests_and_not_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> None:
        core = EngineCore(tiny_lm(), ByteCodec())
        engine = Engine(core, THREAD, 8)
        with monkeypatch.context() as patch:
            patch.setattr(core.scheduler, "plan", lambda: 1 / 0)
            _, end = await tokens_of(engine.submit(Request((1,), 5, GREEDY)))
            assert (end.reason, end.error) == ("error", "something broke here")
        _, end = await tokens_of(engine.submit(Request((1,), 5, GREEDY)))
        assert end.reason == "length"

    wait_for(work())


@dataclass
class Heard:
    """What an engine told."""

    ends: list[Finished] = field(default_factory=list)
    held: list[int] = field(default_factory=list)

    def ended(self, end: Finished) -> None:
        self.ends.append(end)

    def pages(self, held: int, pages: int) -> None:
        assert 0 <= held <= pages
        self.held.append(held)


def test_an_observer_hears_of_every_end_once() -> None:
    async def work() -> None:
        heard = Heard()
        engine = Engine(EngineCore(tiny_lm(), ByteCodec()), THREAD, 8, heard)
        _, end = await tokens_of(engine.submit(Request((1, 2, 3), 5, GREEDY)))
        left = engine.submit(Request((1, 2, 3), 90, GREEDY))
        async with left as events:
            async for _ in events:
                break
        unbegun = engine.submit(Request((4,), 5, GREEDY))
        unbegun.cancel()
        unbegun.cancel()
        while not engine.is_idle:
            await asyncio.sleep(0)
        assert heard.ends[0] == end
        assert [one.reason for one in heard.ends] == ["length", "cancelled", "cancelled"]
        assert max(heard.held) > 0 == heard.held[-1]

    wait_for(work())
