"""From the command to the end of the first optimiser step: `heliostat train` against `torchrun`.

Ours is `heliostat train support_templates` from a checkpoint folder, with everything that is cached
across runs in its cache: simulated cases, redacted cases, token documents, converted weights. It
opens a run, starts a Ray cluster of its own, starts the workers and trains. The peer is `torchrun`
with a script around Hugging Face's Trainer (`trainer_script`) that loads the same checkpoint and
the same rows, already packed, from a saved data set; with DeepSpeed and, as a second peer, without.

A sitecustomize module on PYTHONPATH (folder `probe`) notes in every process of both when it
started, when its large imports ended and when its first optimiser step ended.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks import workload
from benchmarks.result import at_most, options, report, stated
from benchmarks.trainer_script import save_checkpoint, save_rows
from benchmarks.turns import OUR_ENVIRONMENT, PEER_ENVIRONMENT, free_port
from heliostat.storage import Location

LIMIT = 1.5
START_LIMIT_S = 300.0
ROWS = 2000
CASES = 1500

Event = tuple[float, int, str]
"""Seconds since the command was given, process, what happened."""


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=3)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    folder = workload.cache() / "first-step"
    prepare(folder)
    commands = {
        "heliostat": (ours(folder, given.workers), OUR_ENVIRONMENT),
        "deepspeed": (peer(folder, given.workers, "deepspeed"), PEER_ENVIRONMENT),
        "plain": (peer(folder, given.workers, "plain"), PEER_ENVIRONMENT),
    }
    time_to_first_step(*commands["heliostat"])  # fills every cache
    times: dict[str, list[float]] = {name: [] for name in commands}
    timelines: dict[str, list[list[Event]]] = {name: [] for name in commands}
    for pair in range(given.pairs):
        order = list(commands) if pair % 2 == 0 else list(reversed(commands))
        for name in order:
            events = time_to_first_step(*commands[name])
            times[name].append(events[-1][0])
            timelines[name].append(events)
    on = f"{given.workers} worker" + ("s" if given.workers > 1 else "")
    said = f"command to first step, {on}: Heliostat / torchrun + Trainer"
    measures = [
        at_most(f"{said} + DeepSpeed", times["heliostat"], times["deepspeed"], LIMIT),
        at_most(said, times["heliostat"], times["plain"], LIMIT),
        *[stated(name, samples, "s") for name, samples in phases(timelines["heliostat"]).items()],
    ]
    report("first_step", measures, {"timelines": timelines}, given.out)


def prepare(folder: Location) -> None:
    """Checkpoint and packed rows of the peer, made once."""
    if not (folder / "rows").exists():
        codec, _ = workload.transcripts()
        save_checkpoint(folder.local_path / "model", codec)
        save_rows(folder.local_path / "rows", workload.rows(workload.task(workload.LAPTOP, "")))


def ours(folder: Location, workers: int) -> list[str]:
    """Our command; the run ends by itself long after it was ended from outside."""
    return [
        *(sys.executable, "-m", "heliostat.cli.main", "train", "support_templates"),
        *("size=laptop", f"out={folder.local_path / 'runs'}", f"resources.workers={workers}"),
        *(f"model.source={folder.local_path / 'model'}", "compare=false", "dapt.fit.steps=100000"),
        *(f"data.simulator.unlabelled_cases={CASES}", "dapt.fit.evaluation.every=100000"),
    ]


def peer(folder: Location, workers: int, kind: str) -> list[str]:
    """The peer's command."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(workers)),
        *("--master-port", str(free_port()), "-m", "benchmarks.trainer_script"),
        *(str(folder.local_path), str(workers), kind),
    ]


def time_to_first_step(command: list[str], environment: dict[str, str]) -> list[Event]:
    """What happened from the command to the first step, in order; the command is then ended."""
    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as scratch:
        path = Path(scratch) / "events"
        log = Path(scratch) / "log"
        paths = [str(Path(__file__).parent / "probe"), str(Path.cwd())]
        began = time.time()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    **environment,
                    "BENCHMARK_EVENTS": str(path),
                    "PYTHONPATH": os.pathsep.join(paths),
                },
                start_new_session=True,
            )
        try:
            while not (path.exists() and "first step" in path.read_text()):
                if process.poll() is not None or time.time() - began > START_LIMIT_S:
                    raise RuntimeError(f"no first step: {log.read_text()[-3000:]}")
                time.sleep(0.1)
        finally:
            end(process)
        lines = [line.split(" ", 2) for line in path.read_text().splitlines()]
        events = sorted((float(at) - began, int(pid), what) for at, pid, what in lines)
        last = next(at for at, event in enumerate(events) if event[2] == "first step")
        return [(round(at, 3), pid, without_folders(what)) for at, pid, what in events[: last + 1]]


def without_folders(text: str) -> str:
    """The text with every path cut to its last part: where things lie on this machine is noise."""
    return re.sub(r"/(?:[^\s/'\",]+/)+", "", text)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a command and every process it started."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=10)
    process.wait()


def phases(timelines: list[list[Event]]) -> dict[str, list[float]]:
    """Where our time goes, phase by phase; the phases follow one another."""
    found: dict[str, list[float]] = {}
    for events in timelines:
        worker = events[-1][1]
        marks = {
            "1 Python, command line, config, until Ray is imported": first(events, "imported ray"),
            "2 until the worker's process starts": first(events, "", pid=worker),
            "3 until it has imported torch": first(events, "imported torch", pid=worker),
            "4 until it has imported DeepSpeed": first(events, "imported deepspeed", pid=worker),
            "5 until the first step is done": events[-1][0],
        }
        before = 0.0
        for name, at in marks.items():
            found.setdefault(name, []).append(round(at - before, 3))
            before = at
    return found


def first(events: list[Event], what: str, pid: int | None = None) -> float:
    """When something was first noted."""
    return next(at for at, process, event in events if what in event and pid in (None, process))


if __name__ == "__main__":
    main()
