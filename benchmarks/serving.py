"""Serving: Heliostat against a bare Ray Serve deployment, LitServe, and FastAPI with uvicorn.

The same classifier, one torch thread, batches of 16 at most. Requests come at random (open loop).
Throughput is the highest rate of a ladder at which the 99th percentile stays below a limit and
nothing fails; the servers climb the ladder together, a few seconds each in turn, so that they share
the weather of the machine. Heliostat checks a key and the schema, counts, and logs every
prediction; the others do none of it.

Also: the gain of batching with 16 clients in a closed loop, and its cost with one, on a model whose
batch of 16 costs less than three times one of 1.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from benchmarks.result import Measure, options, report
from heliostat.serve.load import LoadResult, Target, load

START_S = 120.0
FACTOR = 1.2
BODIES = (
    {"case_id": "a", "messages": [{"role": "customer", "text": "my card was declined at a shop"}]},
    {
        "case_id": "b",
        "messages": [
            {"role": "customer", "text": "hello"},
            {"role": "advocate", "text": "Hello, thanks for reaching out. How can I help you?"},
            {"role": "customer", "text": "a transfer to my sister never arrived, it was $250"},
        ],
    },
)


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    name: str
    target: Target
    key: str | None


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=3)
    parser.add_argument("bundle", help="a bundle of support_templates")
    parser.add_argument("--limit-ms", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--fixed-rate", type=float, default=20.0)
    given = parser.parse_args()
    bundle = str(Path(given.bundle).resolve())
    found: dict[str, list[float]] = {}
    latencies: dict[str, list[float]] = {}
    steps: list[dict[str, object]] = []
    with ExitStack() as stack:
        servers = [
            stack.enter_context(heliostat(bundle, "Heliostat", [])),
            stack.enter_context(peer("serve", bundle)),
            stack.enter_context(peer("litserve", bundle)),
            stack.enter_context(peer("fastapi", bundle)),
        ]
        for server in servers:
            once(server, given.fixed_rate, given.seconds)
        for _ in range(given.pairs):
            for server in servers:
                fixed = once(server, given.fixed_rate, given.seconds)
                latencies.setdefault(server.name, []).append(fixed.p99_ms)
            for name, rate in climb(servers, given.limit_ms, given.seconds, steps).items():
                found.setdefault(name, []).append(rate)
    measures = [
        compare(f"highest rate with p99 below {given.limit_ms:g} ms", found, name, least)
        for name, least in (("serve", 0.8), ("litserve", None), ("fastapi", None))
    ]
    measures += [
        compare(f"p99 at {given.fixed_rate:g} requests/s", latencies, name, None, "ms")
        for name in ("serve", "litserve", "fastapi")
    ]
    measures += batching(bundle, given.pairs, given.seconds)
    report("serving", measures, {"ladder": steps, "bodies": len(BODIES)}, given.out)


def climb(
    servers: Sequence[Server], limit_ms: float, seconds: float, steps: list[dict[str, object]]
) -> dict[str, float]:
    """The highest rate of each server that it held; a server leaves when it fails twice."""
    rate, held = 20.0, {server.name: 0.0 for server in servers}
    climbing = list(servers)
    while climbing:
        for server in list(climbing):
            for _ in range(2):
                result = once(server, rate, seconds)
                steps.append({"server": server.name, **asdict(result)})
                if not result.errors and result.p99_ms <= limit_ms:
                    held[server.name] = rate
                    break
            else:
                climbing.remove(server)
        rate *= FACTOR
    return held


def once(server: Server, rate: float, seconds: float) -> LoadResult:
    """One rate for a while."""
    return asyncio.run(load(server.target, server.key, rate, seconds))


def compare(
    what: str,
    found: dict[str, list[float]],
    peer_name: str,
    least: float | None,
    unit: str = "requests/s",
) -> Measure:
    """Heliostat / peer, by pairs."""
    ours, theirs = found["Heliostat"], found[peer_name]
    ratios = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
    ratio = ratios[len(ratios) // 2]
    required = "stated" if least is None else f"at least {least:g}"
    met = None if least is None else ratio >= least
    return Measure(f"{what}: Heliostat / {peer_name}", ratio, unit, ours, theirs, required, met)


def batching(bundle: str, pairs: int, seconds: float) -> list[Measure]:
    """What batching gives 16 clients, and costs one."""
    one = ["serve.batching.items=1"]
    with (
        heliostat(bundle, "with", []) as batched,
        heliostat(bundle, "without", one) as single,
    ):
        rates: dict[str, list[float]] = {"with": [], "without": []}
        alone: dict[str, list[float]] = {"with": [], "without": []}
        for _ in range(pairs):
            for server in (batched, single):
                rates[server.name].append(asyncio.run(closed_loop(server, 16, seconds)))
                alone[server.name].append(1000 / asyncio.run(closed_loop(server, 1, seconds)))
    gain = sorted(a / b for a, b in zip(rates["with"], rates["without"], strict=True))
    cost = sorted(a / b for a, b in zip(alone["with"], alone["without"], strict=True))
    middle = pairs // 2
    return [
        Measure(
            "batching, 16 clients: with / without",
            gain[middle],
            "requests/s",
            rates["with"],
            rates["without"],
            "stated",
            None,
        ),
        Measure(
            "batching, 1 client, mean latency: with / without",
            cost[middle],
            "ms",
            alone["with"],
            alone["without"],
            "at most 1.15",
            cost[middle] <= 1.15,
        ),
    ]


async def closed_loop(server: Server, clients: int, seconds: float) -> float:
    """Requests a second of clients that ask as soon as they are answered."""
    headers = {} if server.key is None else {"authorization": f"Bearer {server.key}"}
    done = 0
    async with aiohttp.ClientSession(headers=headers) as session:
        until = time.monotonic() + seconds

        async def client(number: int) -> None:
            nonlocal done
            while time.monotonic() < until:
                body = BODIES[(number + done) % len(BODIES)]
                async with session.post(server.target.url, json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
                done += 1

        began = time.monotonic()
        await asyncio.gather(*(client(number) for number in range(clients)))
        return done / (time.monotonic() - began)


@contextmanager
def heliostat(bundle: str, name: str, words: Sequence[str]) -> Iterator[Server]:
    """`heliostat serve` with a key."""
    port = free_port()
    command = [sys.executable, "-m", "heliostat.cli.main", "serve", "support_templates", bundle]
    with (
        tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as scratch,
        running([*command, f"serve.http.port={port}", *words], Path(scratch)) as process,
    ):
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ctrl-C" in line:
                break
        key = re.search(r"hs_\S+", "".join(said))
        assert key is not None, "".join(said)
        url = f"http://127.0.0.1:{port}/v1/support/suggest"
        yield Server(name, Target(url, BODIES), key[0])


@contextmanager
def peer(kind: str, bundle: str) -> Iterator[Server]:
    """A server of `serving_peers`."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving_peers", kind, bundle, str(port)]
    with running(command, Path.cwd()):
        server = Server(kind, Target(f"http://127.0.0.1:{port}/ask", BODIES), None)
        asyncio.run(answers(server))
        yield server


async def answers(server: Server) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.post(server.target.url, json=BODIES[0]) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            assert time.monotonic() < until, f"{server.name} did not start"
            await asyncio.sleep(0.2)


@contextmanager
def running(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process and its children, for the length of the block."""
    root = str(Path.cwd())
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
