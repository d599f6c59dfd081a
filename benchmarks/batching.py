"""Batching: what it gives 16 clients, and what it costs one.

The endpoint of support_templates with batches of 16 and with batches of one, in a closed loop: a
client asks again as soon as it is answered. Both servers run the same code; one has
`serve.batching.items=1`. The model is narrow and deep and the messages are short, so that even on a
CPU a batch of 16 costs less than three times one of 1. That is measured first, without any server:
where it does not hold, batching cannot give 3 times the throughput, and is not asked to.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

from benchmarks.result import Measure, options, report, stated
from benchmarks.serving_bundle import deeper
from benchmarks.serving_peers import opened, read
from benchmarks.serving_processes import Server, heliostat

CLIENTS = 16
BODY = {"case_id": "a", "messages": [{"role": "customer", "text": "my refund is late"}]}
PATIENT = "serve.limits.answer_ms=60000"
"""Without batching 16 requests wait for each other, and none may be refused here."""
REPEATS = 30


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=5)
    parser.add_argument("bundle", help="a bundle of support_templates")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--layers", type=int, default=64, help="of the model that is served")
    parser.add_argument("--width", type=int, default=32, help="of its residual stream")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as scratch:
        own = str(Path(given.bundle).resolve())
        bundle = deeper(own, given.layers, Path(scratch) / "deep", given.width)
        measures = measured(bundle, given.pairs, given.seconds)
    details = {"body": BODY, "layers": given.layers, "width": given.width}
    report("batching", measures, details, given.out)


def measured(bundle: str, pairs: int, seconds: float) -> list[Measure]:
    """What the table shows."""
    cost = batch_cost(bundle)
    without = [PATIENT, "serve.batching.items=1"]
    rates: dict[str, list[float]] = {"with": [], "without": []}
    alone: dict[str, list[float]] = {"with": [], "without": []}
    with (
        heliostat(bundle, "with", [PATIENT]) as batched,
        heliostat(bundle, "without", without) as single,
    ):
        for server in (batched, single):
            asyncio.run(closed_loop(server, CLIENTS, seconds))
            server.pause()
        for turn in range(pairs):
            for server in (batched, single) if turn % 2 == 0 else (single, batched):
                server.resume()
                rates[server.name].append(asyncio.run(closed_loop(server, CLIENTS, seconds)))
                alone[server.name].append(1000 / asyncio.run(closed_loop(server, 1, seconds)))
                server.pause()
    gain = ratio_of(rates["with"], rates["without"])
    price = ratio_of(alone["with"], alone["without"])
    is_asked = cost < 3
    return [
        stated("model alone, a batch of 16 takes longer than one of 1", [cost], "times"),
        Measure(
            f"batching, {CLIENTS} clients: with / without",
            gain,
            "requests/s",
            rates["with"],
            rates["without"],
            "at least 3" if is_asked else "stated (a batch of 16 costs over 3 times one of 1)",
            gain >= 3 if is_asked else None,
        ),
        Measure(
            "batching, 1 client, mean latency: with / without",
            price,
            "ms",
            alone["with"],
            alone["without"],
            "at most 1.15",
            price <= 1.15,
        ),
    ]


def batch_cost(bundle: str) -> float:
    """How many times longer a batch of 16 takes than one of 1, in the model alone."""
    model = opened(bundle)
    item = read(model, BODY)

    def median_s(size: int) -> float:
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            model.predict([item] * size)
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    return median_s(16) / median_s(1)


def ratio_of(ours: list[float], theirs: list[float]) -> float:
    """The median over the pairs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


async def closed_loop(
    server: Server, clients: int, seconds: float, bodies: Sequence[Mapping[str, object]] = (BODY,)
) -> float:
    """Requests a second of clients that ask as soon as they are answered, with bodies in turn."""
    headers = {} if server.key is None else {"authorization": f"Bearer {server.key}"}
    done = 0
    async with aiohttp.ClientSession(headers=headers) as session:
        until = time.monotonic() + seconds

        async def client() -> None:
            nonlocal done
            while time.monotonic() < until:
                body = bodies[done % len(bodies)]
                async with session.post(server.target.url, json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
                done += 1

        began = time.monotonic()
        await asyncio.gather(*(client() for _ in range(clients)))
        return done / (time.monotonic() - began)


if __name__ == "__main__":
    main()
