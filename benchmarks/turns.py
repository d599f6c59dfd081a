"""Trainings that take turns on the same cores, so that each pair of samples is seconds apart.

All contenders are started and warmed up; then all but one are stopped (SIGSTOP, with every process
of their tree: workers, Ray's own processes, driver) and the one goes on for a few seconds. Nobody
pays for another's background work, and a machine whose load drifts treats them all alike.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

FOR_EVER = 1_000_000
"""Steps of a training that is ended from outside."""
START_LIMIT_S = 300.0
WARM_STEPS = 15
TURN_LIMIT_S = 20.0
FEWEST_STEPS = 5
POLL_S = 0.1


@dataclass(frozen=True)
class Slice:
    """What a contender did in one turn."""

    steps: int
    step_s: float
    """Mean wall-clock time of a step."""
    step_cpu_s: float
    """Mean processor time of a step in the process of rank 0."""
    tree_cpu_s: float
    """Processor time of all processes of the contender, per step."""
    first_step: int
    """Number of the step at whose end the turn's first whole step began, from 1."""
    ends: Sequence[float]
    """When that step and all later ones of the turn ended, in seconds from the first."""


@dataclass
class Contender:
    """A training in processes of its own."""

    name: str
    command: Sequence[str]
    stamps: Path
    """Begins the name of the files that the ranks write their step times to."""
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, log: Path) -> None:
        """Start it; its output goes to `log`."""
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    def read_stamps(self) -> list[tuple[float, float]]:
        """Wall-clock and processor time of rank 0 at the end of every step."""
        path = Path(f"{self.stamps}-0")
        if not path.exists():
            return []
        lines = path.read_text().split("\n")[:-1]
        return [(float(a), float(b)) for a, b in (line.split() for line in lines)]

    def wait_until_warm(self) -> None:
        """Return after the first steps."""
        assert self.process is not None
        limit = time.monotonic() + START_LIMIT_S
        while len(self.read_stamps()) < WARM_STEPS:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}")
            if time.monotonic() > limit:
                raise RuntimeError(f"{self.name} made no steps in {START_LIMIT_S:.0f} s")
            time.sleep(0.2)

    def tree(self) -> list[psutil.Process]:
        """All its processes."""
        assert self.process is not None
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all its processes."""
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def cpu_s(self) -> float:
        """Processor time of all its living processes so far."""
        total = 0.0
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                used = process.cpu_times()
                total += used.user + used.system
        return total

    def end(self) -> None:
        """End all its processes."""
        processes = self.tree()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)


@contextmanager
def warmed_up(contenders: Sequence[Contender], folder: Path) -> Iterator[None]:
    """All contenders started one after another, warm and stopped; ended at the end."""
    with ExitStack() as ending:
        for contender in contenders:
            print(f"starting {contender.name} ...", file=sys.stderr)
            contender.start(folder / f"{contender.name}.log")
            ending.callback(contender.end)
            try:
                contender.wait_until_warm()
            except RuntimeError:
                print((folder / f"{contender.name}.log").read_text()[-3000:], file=sys.stderr)
                raise
            contender.signal(signal.SIGSTOP)
        yield


def take_turns(contenders: Sequence[Contender], rounds: int, steps: int) -> dict[str, list[Slice]]:
    """Let each make `steps` steps, in turn, `rounds` times; every other round backwards."""
    taken: dict[str, list[Slice]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        order = contenders if number % 2 == 0 else list(reversed(contenders))
        for contender in order:
            taken[contender.name].append(take_turn(contender, steps))
    return taken


def take_turn(training: Contender, steps: int) -> Slice:
    """One turn. The step that the last stop interrupted counts for nothing."""
    used = training.cpu_s()
    began = time.monotonic()
    training.signal(signal.SIGCONT)
    before = len(training.read_stamps())
    inside: list[tuple[float, float]] = []
    while len(inside) <= steps:
        if time.monotonic() - began > TURN_LIMIT_S and len(inside) > FEWEST_STEPS:
            break
        time.sleep(POLL_S)
        inside = training.read_stamps()[before:]
    training.signal(signal.SIGSTOP)
    used = training.cpu_s() - used
    made = len(inside) - 1
    return Slice(
        steps=made,
        step_s=(inside[-1][0] - inside[0][0]) / made,
        step_cpu_s=(inside[-1][1] - inside[0][1]) / made,
        tree_cpu_s=used / len(inside),
        first_step=before + 1,
        ends=[round(end - inside[0][0], 5) for end, _ in inside],
    )


OUR_ENVIRONMENT = {"RAY_worker_niceness": "0"}
"""Ray runs workers at niceness 15, which matters only where other programs want the cores too; then
the benchmark would compare priorities and not loops."""
PEER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
"""Ray gives a worker with one CPU one thread; the peers get the same."""


def contender(
    kind: str, workers: int, size: str, folder: Path, save_every: int = FOR_EVER
) -> Contender:
    """One of `contenders.CONTENDERS`, ours under `heliostat train`'s conditions."""
    stamps = folder / kind
    arguments = [kind, str(workers), size, str(FOR_EVER), str(save_every), str(stamps)]
    program = ["-m", "benchmarks.contenders", *arguments]
    if kind == "heliostat":
        return Contender(kind, [sys.executable, *program], stamps, OUR_ENVIRONMENT)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(workers)]
    port = ["--master-port", str(free_port())]
    return Contender(kind, [sys.executable, *launcher, *port, *program], stamps, PEER_ENVIRONMENT)


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
