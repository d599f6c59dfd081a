"""Dynamic batching: limits, waiting, bad items, clients that have gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from heliostat.serve.batcher import Batcher, BatchLimits
from heliostat.serve.durations import Durations
from heliostat.serve.errors import ApiError

LIMITS = BatchLimits(items=4, tokens=100, wait_s=0.05, queue=8)


class Doubling:
    """A model that doubles numbers, when it is let through the gate, and refuses 13."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        assert self.gate.wait(10)
        self.batches.append(list(items))
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


def play(
    limits: BatchLimits, story: Callable[[Batcher[int, int], Doubling], Coroutine[Any, Any, None]]
) -> Doubling:
    model = Doubling()
    with ThreadPoolExecutor(1) as thread:

        async def run() -> None:
            await asyncio.wait_for(story(Batcher(model, limits, thread), model), 20)

        asyncio.run(run())
    return model


async def started(
    batcher: Batcher[int, int], items: Sequence[int], cost: int = 1
) -> list[asyncio.Task[int]]:
    """Submit in order; returns when all wait or are computed."""
    tasks = [asyncio.create_task(batcher.submit(item, cost)) for item in items]
    await asyncio.sleep(0)
    return tasks


def test_what_waits_while_the_model_is_busy_is_computed_together_up_to_the_limit() -> None:
    async def story(batcher: Batcher[int, int], model: Doubling) -> None:
        model.gate.clear()
        first = await started(batcher, [0])
        while batcher.waiting:
            await asyncio.sleep(0)
        rest = await started(batcher, range(1, 7))
        model.gate.set()
        assert await asyncio.gather(*first, *rest) == [0, 2, 4, 6, 8, 10, 12]

    assert play(LIMITS, story).batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_batch_holds_no_more_tokens_than_allowed_but_one_item_always() -> None:
    async def story(batcher: Batcher[int, int], model: Doubling) -> None:
        model.gate.clear()
        tasks = await started(batcher, [0])
        while batcher.waiting:
            await asyncio.sleep(0)
        tasks += await started(batcher, [1, 2], cost=60)
        tasks += await started(batcher, [3], cost=500)
        model.gate.set()
        await asyncio.gather(*tasks)

    assert play(LIMITS, story).batches == [[0], [1], [2], [3]]


def test_a_client_alone_is_never_kept_waiting() -> None:
    slow = BatchLimits(items=4, tokens=100, wait_s=30, queue=8)

    async def story(batcher: Batcher[int, int], model: Doubling) -> None:
        for item in range(3):
            assert await batcher.submit(item, 1) == 2 * item

    assert play(slow, story).batches == [[0], [1], [2]]


def test_clients_that_were_together_find_each_other_again() -> None:
    patient = BatchLimits(items=4, tokens=100, wait_s=10, queue=8)

    async def story(batcher: Batcher[int, int], model: Doubling) -> None:
        await asyncio.gather(*await started(batcher, [1, 2, 3]))
        again = await started(batcher, [4])
        await asyncio.sleep(0.05)
        again += await started(batcher, [5, 6])
        await asyncio.gather(*again)

    assert play(patient, story).batches == [[1, 2, 3], [4, 5, 6]]


def test_the_wait_for_others_ends() -> None:
    async def story(batcher: Batcher[int, int], model: Doubling) -> None:
        await asyncio.gather(*await started(batcher, [1, 2, 3]))
        assert await batcher.submit(4, 1) == 8

    assert play(LIMITS, story).batches == [[1, 2, 3], [4]]


def test_nobody_is_waited_for_who_does_not_come() -> None:
    patient = BatchLimits(items=4, tokens=100, wait_s=5, queue=8)

    async def story(batcher: Batcher[int, int], model: Doubling) -> None:
        await asyncio.gather(*await started(batcher, [1, 2, 3]))
        async with asyncio.timeout(patient.wait_s / 2):
            assert await batcher.submit(4, 1) == 8

    assert play(patient, story).batches == [[1, 2, 3], [4]]


def test_one_bad_item_fails_alone() -> None:
    async def story(batcher: Batcher[int, int], model: Doubling) -> None:
        found = await asyncio.gather(*await started(batcher, [1, 13, 3]), return_exceptions=True)
        assert (found[0], found[2]) == (2, 6)
        assert isinstance(found[1], ValueError)

    play(LIMITS, story)


def test_a_client_that_has_gone_frees_its_place() -> None:
    async def story(batcher: Batcher[int, int], model: Doubling) -> None:
        model.gate.clear()
        first = await started(batcher, [0])
        while batcher.waiting:
            await asyncio.sleep(0)
        gone, stays = await started(batcher, [1, 2])
        gone.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        assert await stays == 4
        await asyncio.gather(*first)
        assert batcher.statistics.abandoned == 1

    assert play(LIMITS, story).batches == [[0], [2]]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again() -> None:
    async def story(batcher: Batcher[int, int], model: Doubling) -> None:
        model.gate.clear()
        tasks = await started(batcher, [0])
        while batcher.waiting:
            await asyncio.sleep(0)
        tasks += await started(batcher, range(LIMITS.queue))
        with pytest.raises(ApiError) as refused:
            batcher.admit()
        assert refused.value.status == 503
        assert int(refused.value.headers()["retry-after"]) >= 1
        model.gate.set()
        await asyncio.gather(*tasks)
        assert batcher.statistics.refused == 1

    play(LIMITS, story)


def test_a_client_that_has_gone_makes_room_for_another_at_once() -> None:
    async def story(batcher: Batcher[int, int], model: Doubling) -> None:
        model.gate.clear()
        first = await started(batcher, [0])
        while batcher.waiting:
            await asyncio.sleep(0)
        tasks = await started(batcher, range(LIMITS.queue))
        with pytest.raises(ApiError):
            batcher.admit()
        tasks[3].cancel()
        await asyncio.sleep(0)
        batcher.admit()
        assert batcher.waiting == LIMITS.queue - 1
        model.gate.set()
        await asyncio.gather(*first, *tasks, return_exceptions=True)
        assert batcher.statistics.abandoned == 1

    play(LIMITS, story)


def test_what_is_foretold_to_be_answered_too_late_is_refused_but_one_may_always_wait() -> None:
    hasty = BatchLimits(items=4, tokens=100, wait_s=0, queue=1000, answer_s=0.1)

    async def story(batcher: Batcher[int, int], model: Doubling) -> None:
        model.gate.clear()
        tasks = await started(batcher, [0])
        while batcher.waiting:
            await asyncio.sleep(0)
        recent = batcher.statistics
        recent.seconds_a_batch, recent.items_a_batch = 0.02, 2.0
        tasks += await started(batcher, range(7))
        batcher.admit()
        with pytest.raises(ApiError) as refused:
            batcher.admit(coming=1)
        assert refused.value.retry_after_s == pytest.approx(0.02 * (1 + 9 / 2))
        recent.seconds_a_batch = 5.0
        with pytest.raises(ApiError):
            batcher.admit()
        for task in tasks[1:]:
            task.cancel()
        await asyncio.sleep(0)
        batcher.admit()
        model.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    play(hasty, story)


def test_in_an_overload_what_is_accepted_keeps_its_latency_and_the_model_stays_busy() -> None:
    """Four times as much as the model can do: 5 ms an item, so 200 a second."""
    limits = BatchLimits(items=4, tokens=100, wait_s=0.005, queue=1000, answer_s=0.1)
    latencies: list[float] = []
    refused = 0

    def compute(items: Sequence[int]) -> list[int]:
        time.sleep(0.005 * len(items))
        return list(items)

    async def story() -> None:
        nonlocal refused
        with ThreadPoolExecutor(1) as thread:
            known = Durations({1: 0.005})
            batcher: Batcher[int, int] = Batcher(compute, limits, thread, durations=known)

            async def ask(item: int) -> None:
                nonlocal refused
                began = time.perf_counter()
                try:
                    batcher.admit()
                except ApiError:
                    refused += 1
                    return
                await batcher.submit(item, 1)
                latencies.append(time.perf_counter() - began)

            tasks = []
            end = time.perf_counter() + 1.5
            while time.perf_counter() < end:
                tasks += [asyncio.create_task(ask(number)) for number in range(8)]
                await asyncio.sleep(0.01)
            await asyncio.gather(*tasks)

    asyncio.run(story())
    assert refused > len(latencies)
    assert sorted(latencies)[len(latencies) // 2] < 0.15
    assert len(latencies) > 100


def test_one_stall_does_not_make_the_next_requests_be_refused() -> None:
    async def story(batcher: Batcher[int, int], model: Doubling) -> None:
        batcher.statistics.seconds_a_batch = 0.001
        model.gate.clear()
        tasks = await started(batcher, [0])
        await asyncio.sleep(0.3)
        model.gate.set()
        await asyncio.gather(*tasks)
        assert batcher.statistics.seconds_a_batch < 0.0013

    play(LIMITS, story)


def test_a_model_that_gives_too_few_results_fails_every_item() -> None:
    async def story() -> None:
        with ThreadPoolExecutor(1) as thread:
            batcher: Batcher[int, int] = Batcher(lambda items: [], LIMITS, thread)
            with pytest.raises(RuntimeError, match="0 results for 1 items"):
                await asyncio.wait_for(batcher.submit(1, 1), 10)

    asyncio.run(story())


def test_short_batches_run_on_the_loop_and_long_ones_in_the_thread() -> None:
    limits = BatchLimits(items=4, tokens=100, wait_s=0.0, queue=8, on_loop_s=0.02)
    known = Durations({2: 0.001, 5: 0.5})
    threads: list[tuple[int, bool]] = []

    def compute(items: Sequence[int]) -> list[int]:
        threads.append((items[0], threading.current_thread() is threading.main_thread()))
        return list(items)

    async def story() -> None:
        with ThreadPoolExecutor(1) as thread:
            batcher: Batcher[int, int] = Batcher(compute, limits, thread, durations=known)
            for item, cost in ((0, 3), (1, 30), (2, 3)):
                assert await batcher.submit(item, cost) == item

    asyncio.run(story())
    assert threads == [(0, True), (1, False), (2, True)]


def test_between_batches_on_the_loop_answers_go_out() -> None:
    """With 12 items that wait, the first four are answered before the last four are computed."""
    limits = BatchLimits(items=4, tokens=100, wait_s=0.0, queue=20, on_loop_s=0.02)
    said: list[str] = []

    def compute(items: Sequence[int]) -> list[int]:
        said.append(f"computed {items[0]}")
        return list(items)

    async def story() -> None:
        with ThreadPoolExecutor(1) as thread:
            batcher: Batcher[int, int] = Batcher(
                compute, limits, thread, durations=Durations({3: 0.001})
            )

            async def ask(item: int) -> None:
                await batcher.submit(item, 1)
                if item % 4 == 0:
                    said.append(f"answered {item}")

            await asyncio.gather(*(ask(item) for item in range(12)))

    asyncio.run(story())
    assert said == [f"{done} {item}" for item in (0, 4, 8) for done in ("computed", "answered")]
