"""Changing versions under load: requests that fail, the share of a canary, sticky keys.

16 clients ask in a closed loop, at least 5,000 requests over 1,000 cases, while `heliostat serve
deploy` changes the versions: a canary of 20 %, the canary for everybody, a version that cannot be
loaded (which must leave the last one answering), and the first version again. A request has failed
when its status is not 200. The canary's share is that of the cases that it got while it was one; a
case is sticky when all its answers between two changes came from one version.
"""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks.result import Measure, options, report
from benchmarks.serving_bundle import deeper, unloadable
from benchmarks.serving_processes import Server, environment, heliostat

CASES = 1000
CLIENTS = 16
PERCENT = 20.0
PHASES = 4


@dataclass(frozen=True)
class Seen:
    """One answer."""

    phase: int
    """Changes that were complete when it was asked."""
    is_settled: bool
    """No change was under way, from its question to its answer."""
    case: str
    status: str
    version: str


class Watch:
    """Which phase it is, as the clients see it."""

    def __init__(self) -> None:
        self.phase = 0
        self.is_changing = False
        self.is_over = False


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=1)
    parser.add_argument("bundle", help="a bundle of support_templates")
    parser.add_argument("--requests", type=int, default=5000)
    given = parser.parse_args()
    bundle = str(Path(given.bundle).resolve())
    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as scratch:
        other = deeper(bundle, 2, Path(scratch) / "other")
        broken = unloadable(bundle, Path(scratch) / "broken")
        with heliostat(bundle, "Heliostat", []) as server:
            seen, codes = asyncio.run(
                story(
                    server,
                    given.requests,
                    [[bundle, f"{other}={PERCENT:g}"], [other], [broken], [bundle]],
                )
            )
    statuses = Counter(one.status for one in seen)
    report("rollout", measures(seen, codes), {"exits": codes, "statuses": statuses}, given.out)


async def story(
    server: Server, requests: int, lineups: Sequence[Sequence[str]]
) -> tuple[list[Seen], list[int]]:
    """All answers, and the exit codes of the deployments."""
    seen: list[Seen] = []
    watch = Watch()
    headers = {"authorization": f"Bearer {server.key}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        clients = [
            asyncio.create_task(client(session, server, number, seen, watch))
            for number in range(CLIENTS)
        ]
        codes = []
        for number, lineup in enumerate(lineups):
            # Counted from the last change on: a change takes as long as thousands of answers.
            await until(seen, len(seen) + requests // (len(lineups) + 1))
            watch.is_changing = True
            codes.append(await asyncio.to_thread(deploy, server, lineup))
            watch.phase, watch.is_changing = number + 1, False
        await until(seen, len(seen) + requests // (len(lineups) + 1))
        watch.is_over = True
        await asyncio.gather(*clients)
    return seen, codes


async def until(seen: Sequence[Seen], answers: int) -> None:
    """Wait for so many answers."""
    while len(seen) < answers:
        await asyncio.sleep(0.02)


async def client(
    session: aiohttp.ClientSession, server: Server, number: int, seen: list[Seen], watch: Watch
) -> None:
    """Ask until it is over."""
    turn = 0
    while not watch.is_over:
        case = f"case-{(number + CLIENTS * turn) % CASES}"
        turn += 1
        phase, was_changing = watch.phase, watch.is_changing
        body = {"case_id": case, "messages": [{"role": "customer", "text": "my refund is late"}]}
        version = ""
        try:
            async with session.post(server.target.url, json=body) as answer:
                status = str(answer.status)
                if answer.status == 200:
                    version = (await answer.json())["model_version"]
        except (aiohttp.ClientError, TimeoutError) as error:
            status = type(error).__name__
        is_settled = not (was_changing or watch.is_changing) and phase == watch.phase
        seen.append(Seen(phase, is_settled, case, status, version))


def deploy(server: Server, bundles: Sequence[str]) -> int:
    """`heliostat serve build` and `deploy`; the exit code."""
    words = [word for bundle in bundles for word in ("--bundle", bundle)]
    settings = [f"serve.http.port={server.port}", "serve.limits.requests_per_minute=null"]
    command = [sys.executable, "-m", "heliostat.cli.main", "serve"]

    def run(*more: str) -> int:
        return subprocess.run(
            [*command, *more], cwd=server.folder, env=environment(), capture_output=True
        ).returncode

    built = run("build", "support_templates", *settings, *words)
    return built or run("deploy", "serve.yaml", "--address", server.dashboard)


def measures(seen: Sequence[Seen], codes: Sequence[int]) -> list[Measure]:
    """What the table shows."""
    failed = Counter(one.status for one in seen if one.status != "200")
    by_case: dict[tuple[int, str], set[str]] = defaultdict(set)
    for one in seen:
        if one.is_settled and one.status == "200":
            by_case[one.phase, one.case].add(one.version)
    first = next(iter(by_case[0, "case-0"]))
    canary = [found for (phase, _), found in by_case.items() if phase == 1]
    share = sum(first not in found for found in canary) / len(canary)
    sigma = math.sqrt(PERCENT / 100 * (1 - PERCENT / 100) / len(canary))
    away = abs(share - PERCENT / 100) / sigma
    unsteady = sum(len(found) > 1 for found in by_case.values())
    unloaded = [found for (phase, _), found in by_case.items() if phase == 3]
    is_back = codes == [0, 0, 1, 0] and all(first not in found for found in unloaded)
    total = len(seen)
    return [
        count(f"failed of {total} requests, {PHASES} changes of versions", failed.total()),
        Measure(
            f"share of a canary of {PERCENT:g} %, sigmas away ({len(canary)} cases)",
            None, "", [away], [], "at most 3", away <= 3,
        ),
        count(f"cases with two versions between changes, of {len(by_case)}", unsteady),
        count("versions that could not be loaded and answered", 0 if is_back else 1),
    ]  # fmt: skip


def count(name: str, found: int) -> Measure:
    """Something that must not happen."""
    return Measure(name, None, "", [float(found)], [], "0", found == 0)


if __name__ == "__main__":
    main()
