"""Trainings of the tiny task with one call, and the means to disturb them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from heliostat.checkpoint.manifest import committed
from heliostat.config.int_range import IntRange
from heliostat.config.resources import ResourcesConfig, TrackerConfig
from heliostat.errors import Interrupted
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.batch_schedule import plan_at
from heliostat.train.config import (
    BatchRampConfig,
    CheckpointConfig,
    EvaluationConfig,
    FitConfig,
    OptimizerConfig,
    ZeroConfig,
)
from heliostat.train.fit import FitResult, fit
from heliostat.train.judge import Judge
from tiny_task import TinyTask

TRAIN_ROWS = 103
EVAL_ROWS = 37
STEPS = 20
CONFIG = FitConfig(
    batch=12,
    micro_batch=2,
    steps=STEPS,
    optimizer=OptimizerConfig(lr=1e-2),
    evaluation=EvaluationConfig(every=10),
    checkpoint=CheckpointConfig(every=4),
)
RISING = replace(CONFIG, batch_ramp=BatchRampConfig(start=4, increment=4, every=6))
"""The whole batch from step 13 on."""
ZERO = {stage: ZeroConfig(stage=stage) for stage in range(4)}
LIMIT_S = 300.0


@dataclass(frozen=True)
class Trainings:
    """Starts trainings in a folder."""

    out: Location
    names: Iterator[int] = field(default_factory=itertools.count)

    def run(self, name: str | None = None) -> Run:
        """A run of that name, begun or gone on with."""
        return Run.open_or_create(
            self.out,
            "tiny",
            name=name or f"run-{next(self.names)}",
            resolved_yaml="seed: 0\n",
            digest="abc",
            seed=0,
            tracker=TrackerConfig(enabled=False),
        )

    def __call__(
        self,
        task: TinyTask,
        config: FitConfig = CONFIG,
        *,
        workers: int = 1,
        run: str | None = None,
        judge: Judge | None = None,
        branch_from: Location | None = None,
    ) -> FitResult:
        with self.run(run) as begun:
            return fit(
                task,
                config,
                run=begun,
                resources=resources(workers),
                judge=judge,
                branch_from=branch_from,
            )

    def folder(self, run: str, task: TinyTask) -> Location:
        """Where a training keeps what it makes."""
        return self.out / run / "stages" / task.name


def resources(workers: int) -> ResourcesConfig:
    """Workers of half a logical CPU, so that two trainings fit at once."""
    return ResourcesConfig(workers=IntRange(workers, workers), cpus_per_worker=0.5)


def losses(result: FitResult) -> list[float]:
    """The training loss of each step."""
    return [row["loss"] for row in result.history() if "loss" in row]


def steps_of(result: FitResult) -> list[int]:
    """The steps in the history, in its order."""
    return [row["step"] for row in result.history() if "loss" in row]


def saved_steps(training: Location) -> list[int]:
    """The steps whose checkpoints are committed."""
    return [manifest.state.step for _, manifest in committed(training / "checkpoints")]


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a state of the world that another process brings about."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {LIMIT_S:.0f} s for {what}")
        time.sleep(0.02)


@contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Run something beside the block; its failure fails the block."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            action()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(LIMIT_S)
    assert not problems, problems


def kill_when_held(
    notes: Location, and_when: Callable[[], object] = lambda: True
) -> Callable[[], None]:
    """Kill the worker that stands still at `hold_at_id`, by a signal that nothing can catch."""
    held = notes / "held"

    def kill() -> None:
        until(held.exists, "a worker to stand still")
        until(and_when, "the state to kill it in")
        os.kill(int(held.read_text()), signal.SIGKILL)

    return kill


def signal_when(condition: Callable[[], object], number: int, what: str) -> Callable[[], None]:
    """Send this process a signal at a state of the world."""

    def send() -> None:
        until(condition, what)
        os.kill(os.getpid(), number)

    return send


def stop_at(
    step: int, train: Trainings, task: TinyTask, config: FitConfig, workers: int, run: str
) -> int:
    """Train until a checkpoint of `step` is committed, press Ctrl-C, and tell where it stopped."""
    folder = train.folder(run, task)

    def is_saved() -> bool:
        return any(saved >= step for saved in saved_steps(folder))

    with (
        meanwhile(signal_when(is_saved, signal.SIGINT, f"step {step} to be saved")),
        pytest.raises(Interrupted, match=r"was stopped at step \d+ of 20, and saved"),
    ):
        train(task, config, workers=workers, run=run)
    return saved_steps(folder)[-1]


def trained_ids(
    notes: Location, starts: Sequence[int], config: FitConfig, workers: int
) -> dict[int, set[int]]:
    """Which samples made up each step, as the workers saw it; of a step done twice the later time.

    Args:
        notes: where the task left its traces.
        starts: the step that each start of the workers went on from, in order.
        config: of the training.
        workers: how many there were at each start.
    """
    by_rank: dict[str, list[Path]] = {}
    traces = sorted(notes.local_path.glob("trace-*"), key=lambda path: path.stat().st_ctime)
    for path in traces:
        by_rank.setdefault(path.name.split("-")[1], []).append(path)
    seen: dict[int, dict[str, list[int]]] = {}
    for rank, paths in by_rank.items():
        assert len(paths) == len(starts)
        for start, path in zip(starts, paths, strict=True):
            batches = [json.loads(line) for line in path.read_text().splitlines()]
            for step in itertools.count(start + 1):
                accumulation = plan_at(config, step, workers).accumulation
                cut, batches = batches[:accumulation], batches[accumulation:]
                if len(cut) < accumulation:
                    break
                seen.setdefault(step, {})[rank] = [i for ids in cut for i in ids]
    return {
        step: {sample for ids in ranks.values() for sample in ids}
        for step, ranks in sorted(seen.items())
    }
