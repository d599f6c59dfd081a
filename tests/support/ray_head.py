"""A Ray cluster as `ray start --head` makes it, in a home of its own, and jobs submitted to it.

It never calls `ray stop`, which ends every Ray process of the machine: what it started is a process
group of its own, and only that is ended.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
START_S = 300
POLL_S = 0.05


@dataclass(frozen=True)
class RayHead:
    """A running head node."""

    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    folder: Path
    """Ray's temporary folder."""
    port: int
    dashboard_port: int

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start_submission(self, folder: Path, entrypoint: Sequence[str]) -> Submission:
        """`ray job submit --working-dir . -- ...`, typed in a folder."""
        command = [str(BIN / "ray"), "job", "submit", "--address", self.dashboard]
        command += ["--working-dir", ".", "--", *entrypoint]
        log = folder.parent / f"submission-{secrets.token_hex(4)}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={**self.environment, "PYTHONUNBUFFERED": "1"},
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Submission(process, log)

    def submit(self, folder: Path, entrypoint: Sequence[str], timeout_s: float = 900) -> Submission:
        """Submit and wait for the end."""
        submission = self.start_submission(folder, entrypoint)
        submission.process.wait(timeout_s)
        return submission

    def training_workers(self) -> list[psutil.Process]:
        """The processes of the training in progress, one a rank."""
        return self._processes("ray::RayTrainWorker")

    def trials(self) -> list[psutil.Process]:
        """The processes of the trials of a sweep at work, one a trial."""
        return [one for one in self._processes("ray::") if "Trainable" in command_of(one)]

    def _processes(self, beginning: str) -> list[psutil.Process]:
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in below if is_named(child, beginning)]


@dataclass(frozen=True)
class Submission:
    """A `ray job submit` and what it printed so far."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        """What was printed, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace"))


@contextmanager
def started_head(home: Path, temporary: Path, cpus: int = 4) -> Iterator[RayHead]:
    """Start a head node on free ports; `temporary` must be short (socket paths are limited)."""
    port, dashboard, client, agent = free_ports(4)
    environment = own_environment(home)
    options = ["--head", f"--port={port}", f"--dashboard-port={dashboard}"]
    options += [f"--ray-client-server-port={client}", f"--temp-dir={temporary}"]
    options += [f"--dashboard-agent-listen-port={agent}", f"--num-cpus={cpus}"]
    process = start_node(options, environment, home / "head.log")
    head = RayHead(process, environment, temporary, port, dashboard)
    try:
        wait_for(lambda: is_ready(head), START_S, "the dashboard answers")
        yield head
    finally:
        end(process)


@contextmanager
def started_worker(head: RayHead) -> Iterator[subprocess.Popen[bytes]]:
    """Join a second node on this machine, with one CPU."""
    (agent,) = free_ports(1)
    options = [f"--address={head.address}", f"--dashboard-agent-listen-port={agent}"]
    log = head.folder.parent / "worker.log"
    process = start_node([*options, "--num-cpus=1"], head.environment, log)
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text(), START_S, "the node has joined")
        yield process
    finally:
        end(process)


def start_node(
    options: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """`ray start --block` in a process group of its own."""
    command = [str(BIN / "ray"), "start", "--block", "--min-worker-port=0", "--max-worker-port=0"]
    with log.open("wb") as sink:
        return subprocess.Popen(
            [*command, "--object-store-memory=200000000", *options],
            env=dict(environment),
            cwd=log.parent,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def raylets(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The living raylet below a `ray start`."""
    below = psutil.Process(node.pid).children(recursive=True)
    return [
        child
        for child in below
        if child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE
    ]


def node_id_of(node: subprocess.Popen[bytes]) -> str:
    """The id of a node, from the command line of its raylet."""
    (raylet,) = raylets(node)
    (found,) = [word for word in raylet.cmdline() if word.startswith("--node_id=")]
    return found.partition("=")[2]


def own_environment(home: Path) -> dict[str, str]:
    """The environment of a user who has nothing set but a token."""
    token = home / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    others = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "HELIOSTAT_", "PYTHON", "MLFLOW_"))
    }
    return others | {
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    }


def is_ready(head: RayHead) -> bool:
    """Whether jobs can be submitted."""
    assert head.process.poll() is None, "ray start ended; see head.log"
    command = [str(BIN / "ray"), "job", "list", "--address", head.dashboard]
    environment = dict(head.environment)
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", head.dashboard_port)):
            return False
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def is_named(process: psutil.Process, beginning: str) -> bool:
    return command_of(process).startswith(beginning)


def command_of(process: psutil.Process) -> str:
    """Its command line; nothing where it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def wait_for(is_true: Callable[[], object], timeout_s: float, what: str) -> None:
    """Poll what another process does, until it is true."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain: {what}"
        time.sleep(POLL_S)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything below it."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
    _, alive = psutil.wait_procs(below, timeout=10)
    for child in alive:
        child.kill()
