"""Serving: Heliostat against a bare Ray Serve deployment, LitServe, and FastAPI with uvicorn.

The same classifier, one torch thread, batches of 16 at most. Requests come at random (open loop).
Throughput is the highest rate at which the 99th percentile stays below a limit and nothing fails:
the servers climb a ladder together, a few seconds each in turn, so that they share the weather of
the machine, and then halve the step that each could not take, twice. Heliostat checks a key and the
schema, counts, and logs every prediction; the others do none of it. It is measured behind HAProxy,
which is the default, and behind Ray's Python proxy, as the bare deployment is.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from benchmarks.result import Measure, options, report
from benchmarks.serving_processes import BODIES, Server, heliostat, peer
from heliostat.serve.load import LoadResult, load

FACTOR = 1.25
HALVINGS = 2
FIRST_RATE = 20.0
OURS, PROXIED = "Heliostat, Python proxy", "Heliostat, HAProxy"
PEERS = ("serve", "litserve", "fastapi")


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=2)
    parser.add_argument("bundle", help="a bundle of support_templates")
    parser.add_argument("--limit-ms", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--fixed-rate", type=float, default=20.0)
    # The 99th percentile of a few seconds at this rate would be one of the two worst requests.
    parser.add_argument("--fixed-seconds", type=float, default=30.0)
    given = parser.parse_args()
    bundle = str(Path(given.bundle).resolve())
    rates: dict[str, list[float]] = {}
    latencies: dict[str, list[float]] = {}
    steps: list[dict[str, object]] = []
    with ExitStack() as stack:
        servers = [
            stack.enter_context(heliostat(bundle, OURS, ["serve.http.haproxy=false"])),
            stack.enter_context(heliostat(bundle, PROXIED, [])),
            *(stack.enter_context(peer(kind, bundle)) for kind in PEERS),
        ]
        for server in servers:
            once(server, given.fixed_rate, given.seconds)
            server.pause()
        for turn in range(given.pairs):
            order = servers if turn % 2 == 0 else servers[::-1]
            for server in order:
                server.resume()
                fixed = once(server, given.fixed_rate, given.fixed_seconds)
                server.pause()
                latencies.setdefault(server.name, []).append(fixed.p99_ms)
            for name, rate in climb(order, given.limit_ms, given.seconds, steps).items():
                rates.setdefault(name, []).append(rate)
    what = f"highest rate with p99 below {given.limit_ms:g} ms"
    fixed_what = f"p99 at {given.fixed_rate:g} requests/s"
    best_rates = [max(pair) for pair in zip(rates["litserve"], rates["fastapi"], strict=True)]
    best_p99s = [
        min(pair) for pair in zip(latencies["litserve"], latencies["fastapi"], strict=True)
    ]
    measures = [
        compare(f"{what}: {OURS} / bare Serve", rates[OURS], rates["serve"], at_least(0.8)),
        compare(
            f"{what}: {PROXIED} / the better of LitServe and FastAPI",
            rates[PROXIED],
            best_rates,
            at_least(1.0),
        ),
        compare(f"{what}: {PROXIED} / LitServe", rates[PROXIED], rates["litserve"]),
        compare(f"{what}: {PROXIED} / FastAPI", rates[PROXIED], rates["fastapi"]),
        compare(
            f"{fixed_what}: {OURS} / bare Serve", latencies[OURS], latencies["serve"], unit="ms"
        ),
        compare(
            f"{fixed_what}: {PROXIED} / the better of LitServe and FastAPI",
            latencies[PROXIED],
            best_p99s,
            at_most(1.0),
            unit="ms",
        ),
    ]
    report("serving", measures, {"ladder": steps, "bodies": len(BODIES)}, given.out)


def climb(
    servers: Sequence[Server], limit_ms: float, seconds: float, steps: list[dict[str, object]]
) -> dict[str, float]:
    """The highest rate of each server that it held."""
    held = {server.name: 0.0 for server in servers}
    refused: dict[str, float] = {}
    rate = FIRST_RATE
    while len(refused) < len(servers):
        for server in servers:
            if server.name in refused:
                continue
            if holds(server, rate, limit_ms, seconds, steps):
                held[server.name] = rate
            else:
                refused[server.name] = rate
        rate *= FACTOR
    for _ in range(HALVINGS):
        for server in servers:
            between = math.sqrt((held[server.name] or FIRST_RATE / 2) * refused[server.name])
            kept = held if holds(server, between, limit_ms, seconds, steps) else refused
            kept[server.name] = between
    return held


def holds(
    server: Server, rate: float, limit_ms: float, seconds: float, steps: list[dict[str, object]]
) -> bool:
    """Whether a server holds a rate; it may try twice."""
    server.resume()
    try:
        for _ in range(2):
            result = once(server, rate, seconds)
            steps.append({"server": server.name, **asdict(result)})
            if not result.errors and result.p99_ms <= limit_ms:
                return True
        return False
    finally:
        server.pause()


def once(server: Server, rate: float, seconds: float) -> LoadResult:
    """One rate for a while."""
    return asyncio.run(load(server.target, server.key, rate, seconds))


Requirement = tuple[str, Callable[[float], bool]]


def at_least(limit: float) -> Requirement:
    """A ratio that must not be smaller."""
    return f"at least {limit:g}", lambda ratio: ratio >= limit


def at_most(limit: float) -> Requirement:
    """A ratio that must not be larger."""
    return f"at most {limit:g}", lambda ratio: ratio <= limit


def compare(
    what: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    requirement: Requirement | None = None,
    unit: str = "requests/s",
) -> Measure:
    """ours / theirs, the median over the pairs."""
    # A server that held not even the first rate counts as half of it.
    ratios = [
        (mine or FIRST_RATE / 2) / (other or FIRST_RATE / 2)
        for mine, other in zip(ours, theirs, strict=True)
    ]
    ratio = statistics.median(ratios)
    if requirement is None:
        return Measure(what, ratio, unit, ours, theirs, "stated", None)
    said, is_met = requirement
    return Measure(what, ratio, unit, ours, theirs, said, is_met(ratio))


if __name__ == "__main__":
    main()
