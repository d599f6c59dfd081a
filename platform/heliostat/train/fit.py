"""`fit`: train a task on a Ray cluster, from wherever it stands to its end.

The driver's side. It checks the request, starts Ray Train's workers (`worker.py`), shows progress,
turns Ctrl-C and SIGTERM into a clean stop with a checkpoint, and a failure into one screen. What is
trained already is not trained again: a finished fit is a finished stage of its run, and an
unfinished one goes on from its newest whole checkpoint, on however many workers there are now.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from heliostat.checkpoint.manifest import committed, tag_of
from heliostat.config.resources import ResourcesConfig
from heliostat.data.reader import batch_plan
from heliostat.errors import Interrupted, TrainingFailed
from heliostat.runs.run import Run
from heliostat.storage import Location
from heliostat.train.config import FitConfig, total_steps
from heliostat.train.failure import explain, screen
from heliostat.train.history import read_history
from heliostat.train.interrupt import StopRequests
from heliostat.train.monitor import start_monitor
from heliostat.train.preflight import check_training
from heliostat.train.progress import Progress
from heliostat.train.spec import FitSpec, Outcome
from heliostat.train.task import Task

logger = logging.getLogger(__name__)

POLL_S = 0.25


@dataclass(frozen=True)
class FitResult:
    """A finished training."""

    folder: Location
    outcome: Outcome
    seconds: float
    """Wall-clock time of the attempt that finished it, start of the workers included."""
    samples_left_out: int
    """Samples of the last, incomplete batch."""

    @property
    def last(self) -> Location:
        """Weights after the last step."""
        return self.folder / "weights" / "last"

    @property
    def best(self) -> Location:
        """Weights of the best evaluation."""
        return self.folder / "weights" / "best"

    def at_step(self, step: int) -> Location:
        """Weights after the evaluation at `step`, with `checkpoint.weights_at_evaluations`."""
        return self.folder / "weights" / tag_of(step)

    @property
    def metrics(self) -> dict[str, float]:
        """The last evaluation."""
        return self.outcome.metrics

    def history(self) -> list[dict[str, Any]]:
        """Every step and every evaluation, in order."""
        return read_history(self.folder / "metrics")


def fit(
    task: Task,
    config: FitConfig,
    *,
    run: Run,
    resources: ResourcesConfig,
    name: str | None = None,
    start_from: Location | None = None,
) -> FitResult:
    """Train a task as a stage of a run.

    Args:
        task: what to train.
        config: how.
        run: the run that it is part of; a stage of this name that is finished is only read.
        resources: workers and what each of them needs; may differ from one start to the next.
        name: of the stage; the task's own name if there is only one training of it in the run.
        start_from: a weights folder to start from instead of the task's initial weights.

    Raises:
        ConfigError: the request cannot work; nothing was started.
        InfeasibleError: the cluster can never place the workers.
        Interrupted: stopped on request; checkpointed.
        TrainingFailed: it broke; what was checkpointed is safe.
    """
    stage = name or task.name
    digest = training_digest(task, config, start_from)

    def work(folder: Location) -> dict[str, Any]:
        return _train(task, config, folder, digest, run, resources, stage, start_from)

    done = run.stage(stage, {"training": digest}, work)
    return FitResult(
        folder=run.folder / "stages" / stage,
        outcome=Outcome(**done["outcome"]),
        seconds=done["seconds"],
        samples_left_out=done["samples_left_out"],
    )


def training_digest(task: Task, config: FitConfig, start_from: Location | None) -> str:
    """Short hash of everything that decides the result, resources left out."""
    text = f"{task!r}|{config!r}|{start_from.uri if start_from is not None else None}"
    return sha256(text.encode()).hexdigest()[:12]


def _train(
    task: Task,
    config: FitConfig,
    folder: Location,
    digest: str,
    run: Run,
    resources: ResourcesConfig,
    stage: str,
    start_from: Location | None,
) -> dict[str, Any]:
    stream = task.train_data()
    steps = total_steps(config, stream.epoch_size)
    left_out = 0
    if config.epochs is not None:
        left_out = int(config.epochs * stream.epoch_size) - steps * config.batch
    check_training(task, config, resources, folder)
    spec = FitSpec(
        task=task,
        config=config,
        folder=folder,
        start_from=start_from,
        digest=digest,
        steps=steps,
        gpus_per_worker=resources.gpus_per_worker,
        monitor=start_monitor(),
    )
    plan = batch_plan(config.batch, config.micro_batch, resources.workers.high)
    logger.info(
        "%s: %d steps of %d samples = %d workers x micro batch %d x accumulation %d",
        stage, steps, config.batch, resources.workers.high, plan.micro_batch, plan.accumulation,
    )  # fmt: skip
    began = time.monotonic()
    outcome = _Training(spec, run, resources, stage).watch()
    if outcome.status == "failed":
        raise TrainingFailed(f"training {stage} failed: {outcome.message}")
    if outcome.status == "stopped":
        raise Interrupted(f"stopped at step {outcome.step} of {steps} of {stage}, and saved")
    return {
        "outcome": asdict(outcome),
        "seconds": time.monotonic() - began,
        "samples_left_out": left_out,
    }


class _Training:
    """One call of Ray Train's `fit`, in a thread, watched from the driver's main thread."""

    def __init__(self, spec: FitSpec, run: Run, resources: ResourcesConfig, stage: str) -> None:
        self._spec, self._run, self._resources, self._stage = spec, run, resources, stage
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._last_step = 0

    def watch(self) -> Outcome:
        import ray

        thread = threading.Thread(target=self._fit, name=f"fit-{self._stage}", daemon=True)
        monitor = self._spec.monitor
        with Progress(self._stage, self._spec.steps) as progress, StopRequests() as stop:
            thread.start()
            while thread.is_alive():
                thread.join(POLL_S)
                if stop.is_new():
                    logger.info("%s: saving a checkpoint, then stopping", self._stage)
                    ray.get(monitor.request_stop.remote())
                self._take(ray.get(monitor.drain.remote()), progress)
            self._take(ray.get(monitor.drain.remote()), progress)
        if self._error is not None:
            raise self._failure(self._error) from self._error
        assert self._outcome is not None
        return self._outcome

    def _fit(self) -> None:
        from heliostat.train.ray_train import run_workers

        try:
            self._outcome = run_workers(self._spec, self._resources, self._run.id, self._stage)
        except BaseException as error:
            self._error = error

    def _take(self, news: tuple[list[dict[str, float]], list[str]], progress: Progress) -> None:
        rows, notes = news
        for note in notes:
            logger.warning("%s: %s", self._stage, note)
        for row in rows:
            self._last_step = max(self._last_step, int(row["step"]))
            values = {key: value for key, value in row.items() if key != "step"}
            self._run.log(values, step=int(row["step"]), stage=self._stage)
        progress.add(rows)

    def _failure(self, error: BaseException) -> TrainingFailed:
        import ray

        recorded = ray.get(self._spec.monitor.failures.remote())
        latest = max((failure.attempt for failure in recorded), default=0)
        explanation = explain(
            [failure for failure in recorded if failure.attempt == latest],
            getattr(error, "worker_failures", {}),
            error,
        )
        checkpoints = committed(self._spec.checkpoints)
        return TrainingFailed(
            screen(
                explanation,
                training=self._stage,
                last_step=self._last_step,
                checkpoint=checkpoints[-1][0].uri if checkpoints else None,
            )
        )
