"""The figures of a load test, from known latencies and against a real server."""

from __future__ import annotations

import asyncio
import math

import pytest
from aiohttp import web

from heliostat.errors import UserError
from heliostat.serve.load import Target, load, seconds_for, summary, target_of


def test_the_peak_minute_is_the_worst_mean_over_sixty_seconds() -> None:
    arrivals = [float(second) for second in range(180)]
    slow = [(0.1 if 60 <= second < 120 else 0.01, "200") for second in range(180)]
    found = summary(1.0, arrivals, slow)
    assert found.peak_minute_ms == pytest.approx(100, rel=0.02)
    assert found.max_ms == pytest.approx(100)
    assert found.p50_ms == pytest.approx(10)


def test_errors_are_counted_and_their_latency_is_not() -> None:
    outcomes = [(0.01, "200"), (5.0, "503"), (0.03, "200"), (9.0, "TimeoutError")]
    found = summary(1.0, [0, 1, 2, 3], outcomes)
    assert found.errors == {"503": 1, "TimeoutError": 1}
    assert found.max_ms == pytest.approx(30)
    assert found.peak_minute_ms == pytest.approx(20)
    assert found.refused_p99_ms == pytest.approx(5000)
    nothing = summary(1.0, [0], [(1.0, "500")])
    assert nothing.errors == {"500": 1}
    assert math.isnan(nothing.refused_p99_ms)


def test_each_rate_is_held_for_twenty_seconds_here_and_five_minutes_elsewhere() -> None:
    assert seconds_for("http://127.0.0.1:8000") == seconds_for("https://localhost") == 20
    assert seconds_for("https://suggestions.example.com/") == 300


def test_a_slow_server_does_not_slow_the_arrivals() -> None:
    """Two requests a second that take a second each: most are under way together."""
    at_once = most = 0

    async def slow(request: web.Request) -> web.Response:
        nonlocal at_once, most
        assert request.headers["authorization"] == "Bearer k"
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.5)
        at_once -= 1
        return web.json_response({})

    async def story() -> None:
        app = web.Application()
        app.router.add_post("/ask", slow)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        target = Target(f"http://127.0.0.1:{port}/ask", ({"a": 1},))
        found = await load(target, "k", rate=20, seconds=1.5)
        await runner.cleanup()
        assert found.errors == {}
        assert found.sent > 15
        assert found.p50_ms >= 500
        with pytest.raises(UserError, match="no endpoint answers"):
            await target_of(f"http://127.0.0.1:{port}")

    asyncio.run(story())
    assert most >= 4
