"""Overload: how fast a request is refused, and what becomes of those that are accepted.

The endpoint of support_templates is asked, open loop, at a rate that it holds with ease and then at
a multiple of what it can do, which clients in a closed loop have found out before. A refusal is a
503. An accepted request was foretold an answer within `serve.limits.answer_ms`. The clients run on
the same cores, so their own delays count as well; how late they sent is told.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path

from benchmarks.batching import closed_loop
from benchmarks.result import Measure, options, report, stated
from benchmarks.serving_processes import heliostat
from heliostat.serve.config import LimitsConfig
from heliostat.serve.load import LoadResult, load

REFUSAL_MS = 50.0
CLIENTS = 16
CALM = 0.3
"""Share of what the endpoint can do."""


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=3)
    parser.add_argument("bundle", help="a bundle of support_templates")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--times", type=float, default=2.0, help="the overload, in capacities")
    given = parser.parse_args()
    calm: list[LoadResult] = []
    overloaded: list[LoadResult] = []
    with heliostat(str(Path(given.bundle).resolve()), "Heliostat", []) as server:
        bodies = server.target.bodies
        asyncio.run(closed_loop(server, CLIENTS, given.seconds / 2, bodies))
        capacity = asyncio.run(closed_loop(server, CLIENTS, given.seconds, bodies))
        for pair in range(given.pairs):
            for rate, results in ((CALM, calm), (given.times, overloaded)):
                asked = load(server.target, server.key, rate * capacity, given.seconds, seed=pair)
                results.append(asyncio.run(asked))
    details = {"calm": [asdict(one) for one in calm], "over": [asdict(one) for one in overloaded]}
    report("overload", measures(capacity, calm, overloaded, given.times), details, given.out)


def measures(
    capacity: float, calm: list[LoadResult], overloaded: list[LoadResult], times: float
) -> list[Measure]:
    """What the table shows."""
    refusals = [one.refused_p99_ms for one in overloaded]
    accepted = [one.p99_ms for one in overloaded]
    others = [
        float(sum(number for status, number in one.errors.items() if status != "503"))
        for one in (*calm, *overloaded)
    ]
    promised = LimitsConfig().answer_ms
    at = f"at {times:g} times the capacity"
    return [
        stated("capacity, closed loop", [capacity], "requests/s"),
        _within(f"p99 of a refusal {at}", refusals, REFUSAL_MS),
        _within(f"p99 of what is accepted {at}", accepted, promised),
        stated(
            f"p99 of the clients' own delay {at}", [one.late_p99_ms for one in overloaded], "ms"
        ),
        stated(f"p99 at {CALM:g} of the capacity", [one.p99_ms for one in calm], "ms"),
        Measure("errors other than 503", None, "", others, [], "0", not any(others)),
    ]


def _within(name: str, found: list[float], limit: float) -> Measure:
    """Milliseconds, none of them above a limit."""
    is_met = all(one <= limit for one in found)
    return Measure(name, None, "ms", found, [], f"at most {limit:g} ms", is_met)


if __name__ == "__main__":
    main()
