"""`fit`: train a task on a Ray cluster, from wherever it stands to its end.

The driver's side. It checks the request, starts Ray Train's workers (`worker.py`), shows progress,
turns Ctrl-C and SIGTERM into a clean stop with a checkpoint, and a failure into one screen. What is
trained already is not trained again: a finished fit is a finished stage of its run, and an
unfinished one goes on from its newest whole checkpoint, on however many workers there are now.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from heliostat.checkpoint.manifest import tag_of
from heliostat.cluster.ray_cluster import owns_cluster
from heliostat.config.resources import ResourcesConfig
from heliostat.data.reader import batch_plan
from heliostat.runs.run import Run
from heliostat.runs.series import read_series
from heliostat.runs.stages import TRIALS
from heliostat.storage import Location
from heliostat.train.batch_schedule import ramp_steps, samples_in, total_steps
from heliostat.train.config import FitConfig
from heliostat.train.history import read_history
from heliostat.train.judge import Judge
from heliostat.train.monitor_handle import start_monitor
from heliostat.train.preflight import allowed_workers, check_training
from heliostat.train.spec import FitSpec, Outcome
from heliostat.train.task import Task
from heliostat.train.watch import Watch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """A finished training."""

    folder: Location
    outcome: Outcome
    seconds: float
    """Wall-clock time of the attempt that finished it, start of the workers included."""
    samples_left_out: int
    """Samples of the last, incomplete batch."""
    stops_early: bool
    """Whether it was to stop where its evaluations no longer improve."""

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
    def final(self) -> Location:
        """What the training is for: the last weights, or where it stops early the best."""
        return self.best if self.stops_early else self.last

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
    judge: Judge | None = None,
    branch_from: Location | None = None,
) -> FitResult:
    """Train a task as a stage of a run.

    Args:
        task: what to train.
        config: how.
        run: the run that it is part of; a stage of this name that is finished is only read.
        resources: workers and what each of them needs; may differ from one start to the next.
        name: of the stage; the task's own name if there is only one training of it in the run.
        start_from: a weights folder to start from instead of the task's initial weights.
        judge: decides after each evaluation whether the training goes on.
        branch_from: a committed checkpoint of a training that differs in its config alone; all of
            it is taken over, optimiser, position in the data and step included.

    Raises:
        ConfigError: the request cannot work; nothing was started.
        InfeasibleError: the cluster can never place the workers.
        Interrupted: stopped on request; checkpointed. From other threads than the main one, call
            it through `in_parallel`, or no request to stop arrives.
        JudgedToStop: the judge stopped it; checkpointed.
        TrainingFailed: it broke; what was checkpointed is safe.
    """
    stage = name or task.name
    digest = training_digest(task, config, start_from, run)
    origin = {} if branch_from is None else {"branch": _placeless(branch_from.uri, run)}

    def work(folder: Location) -> dict[str, Any]:
        check_training(task, config, resources, run)
        spec = FitSpec(
            task=task,
            config=config,
            folder=folder,
            start_from=start_from,
            digest=digest,
            steps=total_steps(config, task.train_data().epoch_size),
            gpus_per_worker=resources.gpus_per_worker,
            may_lose_nodes=not owns_cluster(),
            expert_parallel=resources.expert_parallel,
            expert_timeout_s=resources.expert_timeout_s,
            monitor=start_monitor(),
            is_judged=judge is not None,
            saves_to_be_judged=judge is not None and judge.saves,
            branch_from=branch_from,
        )
        return _train(spec, run, resources, stage, judge)

    done = run.stage(stage, {"training": digest, **origin}, work, is_costly=True)
    return FitResult(
        folder=run.folder / "stages" / stage,
        outcome=Outcome(**done["outcome"]),
        seconds=done["seconds"],
        samples_left_out=done["samples_left_out"],
        stops_early=config.evaluation.patience is not None,
    )


LATER = ("batch_ramp=None, ", ", hybrid=None")
"""What tasks and configs say of themselves since after trainings had been begun."""


def training_digest(task: Task, config: FitConfig, start_from: Location | None, run: Run) -> str:
    """Short hash of everything that decides the result, resources left out.

    Places in the run's folder and in the cache count by their names there: a run goes on where it
    was moved to, and for another user.
    """
    text = f"{task!r}|{config!r}|{start_from.uri if start_from is not None else None}"
    for later in LATER:
        # A training without it is what it was before there was such a thing, and goes on.
        text = text.replace(later, "")
    return sha256(_placeless(text, run).encode()).hexdigest()[:12]


def _placeless(text: str, run: Run) -> str:
    """A text with names for the folders that may lie elsewhere tomorrow."""
    places = {run.folder.uri: "RUN", run.cache.uri: "CACHE"}
    if run.folder.parent.name == TRIALS:
        # What the trials of a sweep share lies beside them.
        places[run.folder.parent.parent.uri] = "SWEEP"
    for place, name in places.items():
        text = text.replace(place, name)
    return text


def _train(
    spec: FitSpec, run: Run, resources: ResourcesConfig, stage: str, judge: Judge | None
) -> dict[str, Any]:
    began = time.monotonic()
    config = spec.config
    left_out = 0
    if config.epochs is not None:
        samples = int(config.epochs * spec.task.train_data().epoch_size)
        left_out = samples - samples_in(config, spec.steps)
    allowed = allowed_workers(config, resources)
    plan = batch_plan(config.batch, config.micro_batch, allowed[-1])
    if resources.workers.low < resources.workers.high:
        logger.info("%s: on %s workers", stage, " or ".join(map(str, allowed)))
    logger.info(
        "%s: %d steps of %d samples = %d workers x micro batch %d x accumulation %d",
        stage, spec.steps, config.batch,
        allowed[-1], plan.micro_batch, plan.accumulation,
    )  # fmt: skip
    if config.batch_ramp is not None:
        logger.info(
            "%s: the first step has %d samples, and from step %d on steps have all %d",
            stage, config.batch_ramp.start, ramp_steps(config) + 1, config.batch,
        )  # fmt: skip
    outcome = Watch(spec, run, resources, stage, judge).until_it_ends()
    if run.attempt > 1:
        _log_what_was_missed(run, stage, read_history(spec.folder / "metrics"))
    return {
        "outcome": asdict(outcome),
        "seconds": time.monotonic() - began,
        "samples_left_out": left_out,
    }


def _log_what_was_missed(run: Run, stage: str, rows: Sequence[Mapping[str, float]]) -> None:
    """Log the steps that a driver did not hear of before it died; the workers kept them.

    A series is in the order of its steps, so from the first gap on everything is logged again.
    """
    logged = read_series(run.folder).get(stage, {})
    known = {name: set(series.steps) for name, series in logged.items()}
    gaps = [
        place
        for place, row in enumerate(rows)
        if any(row["step"] not in known.get(name, ()) for name in row if name != "step")
    ]
    for row in rows[gaps[0] :] if gaps else ():
        values = {name: value for name, value in row.items() if name != "step"}
        run.log(values, step=int(row["step"]), stage=stage)
