"""The servers of the serving benchmarks, as processes that stand still while others are measured.

All are started and warmed up; then all but one stand still (SIGSTOP, with every process of their
tree), so that nobody pays for another's background work.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from heliostat.serve.load import Target

START_S = 180.0
QUIET = 0.15
"""Share of a core that a server may take without requests: Ray's processes idle at 0.11."""
SETTLE_S = 30.0
"""At most so long is waited for it."""
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
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Ray gives its workers a low priority, and the clients here compete with them.
    "RAY_worker_niceness": "0",
}


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    name: str
    target: Target
    key: str | None
    process: subprocess.Popen[str]
    folder: Path
    """Where it runs."""
    dashboard: str = ""
    """Of its Ray cluster, where `heliostat serve deploy` changes it."""

    @property
    def port(self) -> int:
        return int(self.target.url.split(":")[2].split("/")[0])

    def pause(self) -> None:
        """Let all its processes stand still."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, and wait until it has caught up with what its timers missed."""
        self._signal(signal.SIGCONT)
        until = time.monotonic() + SETTLE_S
        while time.monotonic() < until:
            before, since = self._processor_s(), time.monotonic()
            time.sleep(1.0)
            if self._processor_s() - before <= QUIET * (time.monotonic() - since):
                return

    def _processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def _processor_s(self) -> float:
        """Processor time of all its processes so far, in seconds."""
        total = 0.0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


@contextmanager
def heliostat(bundle: str, name: str, words: Sequence[str]) -> Iterator[Server]:
    """`heliostat serve` with a key, and no limit on its rate.

    Args:
        bundle: a bundle of support_templates.
        name: of the server.
        words: of the command line, besides.
    """
    port = free_port()
    command = [sys.executable, "-m", "heliostat.cli.main", "serve", "support_templates", bundle]
    settings = [f"serve.http.port={port}", "serve.limits.requests_per_minute=null", *words]
    with (
        tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as scratch,
        running([*command, *settings], Path(scratch)) as process,
    ):
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "Ctrl-C" in line:
                break
        key, address = re.search(r"hs_\S+", said), re.search(r"--address (\S+)", said)
        assert key is not None, said
        url = f"http://127.0.0.1:{port}/v1/support/suggest"
        dashboard = address[1] if address else "http://127.0.0.1:8265"
        yield Server(name, Target(url, BODIES), key[0], process, Path(scratch), dashboard)


@contextmanager
def peer(kind: str, bundle: str) -> Iterator[Server]:
    """A server of `serving_peers`."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving_peers", kind, bundle, str(port)]
    with running(command, Path.cwd()) as process:
        target = Target(f"http://127.0.0.1:{port}/ask", BODIES)
        server = Server(kind, target, None, process, Path.cwd())
        asyncio.run(_answers(server))
        yield server


async def _answers(server: Server) -> None:
    """Wait until a server answers."""
    until, said = time.monotonic() + START_S, "nothing"
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.post(server.target.url, json=BODIES[0]) as answer:
                    if answer.status == 200:
                        return
                    said = await answer.text()
            except aiohttp.ClientError as error:
                said = str(error)
            assert time.monotonic() < until, f"{server.name} did not start, but said: {said}"
            await asyncio.sleep(0.2)


@contextmanager
def running(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process and its children, for the length of the block."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        parent = psutil.Process(process.pid)
        for one in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGCONT)
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment() -> dict[str, str]:
    """The variables of every server and command."""
    path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
