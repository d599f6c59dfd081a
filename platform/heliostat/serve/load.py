"""A load test with open-loop arrivals: requests come when they come, however slow the answers are.

A closed loop of clients that wait for each other hides an overload, because it asks less the slower
the answers get. Arrivals are Poisson, seeded. Latency counts from the moment a request was due, so
time that it could not be sent for counts too.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random

import aiohttp
import numpy as np

from heliostat.errors import UserError
from heliostat.serve.health import is_local

_SETTINGS = re.compile(r'<script type="application/json" id="settings">(.*?)</script>', re.DOTALL)
TIMEOUT_S = 60.0
LOCAL_S, REMOTE_S = 20.0, 300.0
WINDOW_S = 60.0
OVERLOADED = "503"


@dataclass(frozen=True)
class Target:
    """What to ask."""

    url: str
    """The route, whole."""
    bodies: tuple[Mapping[str, object], ...]
    """Bodies that are sent in turn."""


@dataclass(frozen=True)
class LoadResult:
    """What one rate gave; latencies in milliseconds, of answers that are no error."""

    rate: float
    """Requests a second that were due."""
    sent: int
    peak_minute_ms: float
    """Highest mean over a minute of arrivals; over all of them where there is less."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    refused_p99_ms: float
    """Of answers with 503; nan where there is none."""
    errors: Mapping[str, int]
    """By status, or by kind where there was no answer."""
    late_p99_ms: float = 0.0
    """How late requests were sent, because this process was busy; the latencies contain it."""


def seconds_for(url: str) -> float:
    """How long each rate is held where nothing is said: short on a laptop."""
    return LOCAL_S if is_local(url) else REMOTE_S


async def target_of(url: str) -> Target:
    """The route and the examples that an endpoint's page offers."""
    base = url.rstrip("/")
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{base}/") as answer:
            found = _SETTINGS.search(await answer.text())
    except aiohttp.ClientError as error:
        raise UserError(f"no endpoint answers at {url}: {error}") from None
    if found is None:
        raise UserError(f"{url} is no endpoint of Heliostat: its page has no examples")
    settings = json.loads(found[1])
    bodies = tuple(example["body"] for example in settings["examples"])
    return Target(base + settings["path"], bodies)


async def load(
    target: Target, key: str | None, rate: float, seconds: float, seed: int = 0
) -> LoadResult:
    """Ask at a rate for a while.

    Args:
        target: what to ask.
        key: bearer key; None for an endpoint without.
        rate: requests a second, on average.
        seconds: how long new requests come.
        seed: of the arrivals.
    """
    random = Random(seed)
    arrivals: list[float] = []
    due = random.expovariate(rate)
    while due < seconds:
        arrivals.append(due)
        due += random.expovariate(rate)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    client = aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)
    with _without_collections():
        return await _asked(client, target, rate, arrivals)


async def _asked(
    client: aiohttp.ClientSession, target: Target, rate: float, arrivals: Sequence[float]
) -> LoadResult:
    loop = asyncio.get_running_loop()
    async with client as session:
        begin = loop.time()
        late: list[float] = []

        async def ask(number: int, due: float) -> tuple[float, str]:
            late.append(loop.time() - begin - due)
            body = target.bodies[number % len(target.bodies)]
            try:
                async with session.post(target.url, json=body) as answer:
                    await answer.read()
                    outcome = str(answer.status)
            except (aiohttp.ClientError, TimeoutError) as error:
                outcome = type(error).__name__
            return loop.time() - begin - due, outcome

        tasks = []
        for number, due in enumerate(arrivals):
            await asyncio.sleep(max(0.0, begin + due - loop.time()))
            tasks.append(asyncio.create_task(ask(number, due)))
        result = summary(rate, arrivals, await asyncio.gather(*tasks))
        late_p99_ms = 1000 * float(np.percentile(late, 99)) if late else 0.0
        return replace(result, late_p99_ms=late_p99_ms)


@contextmanager
def _without_collections() -> Iterator[None]:
    """No garbage collections: each would stop the clients, and go through every request so far."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def summary(
    rate: float, arrivals: Sequence[float], outcomes: Sequence[tuple[float, str]]
) -> LoadResult:
    """The figures of one rate.

    Args:
        rate: that was asked for.
        arrivals: when each request was due, seconds, ascending.
        outcomes: its latency in seconds, and its status or what went wrong.
    """
    errors = Counter(outcome for _, outcome in outcomes if not outcome.startswith("2"))
    good = np.array([outcome.startswith("2") for _, outcome in outcomes], dtype=bool)
    every = 1000 * np.array([latency for latency, _ in outcomes])
    refusals = every[[outcome == OVERLOADED for _, outcome in outcomes]]
    nothing = float("nan")
    refused_p99_ms = float(np.percentile(refusals, 99)) if len(refusals) else nothing
    latencies = every[good]
    if not len(latencies):
        return LoadResult(
            rate, len(outcomes), nothing, nothing, nothing, nothing, refused_p99_ms, dict(errors)
        )
    return LoadResult(
        rate=rate,
        sent=len(outcomes),
        peak_minute_ms=_peak(np.asarray(arrivals)[good], latencies),
        p50_ms=float(np.percentile(latencies, 50)),
        p99_ms=float(np.percentile(latencies, 99)),
        max_ms=float(latencies.max()),
        refused_p99_ms=refused_p99_ms,
        errors=dict(errors),
    )


def _peak(arrivals: np.ndarray, latencies: np.ndarray) -> float:
    if arrivals[-1] <= WINDOW_S:
        return float(latencies.mean())
    sums = np.concatenate([[0.0], np.cumsum(latencies)])
    ends = np.searchsorted(arrivals, arrivals + WINDOW_S)
    # Windows that reach beyond the last arrival are not whole.
    whole = arrivals + WINDOW_S <= arrivals[-1]
    starts = np.flatnonzero(whole)
    means = (sums[ends[whole]] - sums[starts]) / (ends[whole] - starts)
    return float(means.max())
