"""One trial at work: the job's function in a thread, and the gate between it and the scheduler.

The job's function never sees the sweep: it trains, and after an evaluation its training stands
still until whoever holds the performance asks for more (`next`) or ends it (`stop`).
"""

from __future__ import annotations

import importlib
import queue
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from heliostat.cluster.ray_cluster import share_cluster
from heliostat.config.resources import ResourcesConfig, TrackerConfig
from heliostat.errors import Fault, HeliostatError, Interrupted
from heliostat.runs.run import Run
from heliostat.runs.stages import TRIALS
from heliostat.storage import Location
from heliostat.sweep.contract import TrialKind
from heliostat.sweep.director import TrialEnd, TrialOrder
from heliostat.sweep.ledger import Point
from heliostat.train.config import FitConfig
from heliostat.train.failure import shorten
from heliostat.train.fit import FitResult, fit
from heliostat.train.judge import Evaluation, JudgedToStop
from heliostat.train.task import Task

STOP_S = 120.0
"""Time for a training to save when it is ended from outside."""


@dataclass(frozen=True)
class TrialSetting:
    """What all trials of a sweep are told."""

    sweep: Location
    """The folder of the sweep's run."""
    job: str
    module: str
    """The job's `sweep.py`, by import name."""
    kind: str
    shared: Mapping[str, object]
    bundle: Location | None
    tracker: TrackerConfig
    own_cluster: str | None
    """Address of the cluster if it ends with the sweep's own process."""
    is_stopping: Callable[[], bool]
    """Whether the user has asked the sweep to stop; picklable."""


class Performance:
    """One attempt at a trial."""

    def __init__(self, order: TrialOrder, setting: TrialSetting) -> None:
        self._order, self._setting = order, setting
        self._gate = Gate(order.saves, setting.is_stopping)
        self._thread = threading.Thread(target=self._work, name=order.name, daemon=True)
        self._thread.start()

    def next(self) -> Point | TrialEnd:
        """Let it go on to its next evaluation, or to its end."""
        return self._gate.next()

    def stop(self, within_s: float | None = STOP_S) -> None:
        """End it, with a checkpoint where it trains; None waits for that however long it takes."""
        self._gate.end()
        self._thread.join(within_s)

    def _work(self) -> None:
        try:
            end = TrialEnd("finished", self._perform())
        except Interrupted:
            # By the scheduler, which knows it, or by the user.
            end = TrialEnd("waiting", {})
        except HeliostatError as error:
            end = TrialEnd("failed", {}, str(error))
        except BaseException as error:
            kind = type(error).__name__
            end = TrialEnd("failed", {}, f"{kind}: {error}\n{shorten(traceback.format_exc())}")
        self._gate.leave(end)

    def _perform(self) -> dict[str, float]:
        order, setting = self._order, self._setting
        share_cluster(setting.own_cluster)
        kind: TrialKind = importlib.import_module(setting.module).TRIALS[setting.kind]
        with Run.open_or_create(
            setting.sweep / TRIALS,
            setting.job,
            name=order.name,
            resolved_yaml=order.loaded.resolved_yaml,
            digest=order.loaded.digest,
            seed=order.loaded.config.seed,
            tracker=setting.tracker,
        ) as run:
            trial = GatedTrial(run, setting, order.branch, self._gate)
            try:
                returned = kind.trial(order.loaded.config, trial)
            except JudgedToStop as stop:
                # It can go on; until then its last evaluation stands for it.
                run.finish(self._gate.latest, "interrupted", error=str(stop))
                raise
            metrics = {name: float(value) for name, value in returned.items()}
            if absent := [name for name in kind.metrics if name not in metrics]:
                raise Fault(
                    f"the trial returned {', '.join(metrics)}, but kind {setting.kind} of "
                    f"{setting.module} says that it ends with {', '.join(absent)}"
                )
            run.finish(metrics)
        return metrics


class Gate:
    """A judge whose verdict is given by whoever asks for the next evaluation."""

    def __init__(self, saves: bool, is_stopping: Callable[[], bool]) -> None:
        self.saves = saves
        self._is_stopping = is_stopping
        self._out: queue.Queue[Point | TrialEnd] = queue.Queue()
        self._verdicts: queue.Queue[bool] = queue.Queue()
        self._is_ended = threading.Event()
        self._waits = False
        self.stage = ""
        """The stage that is judged."""
        self.latest: dict[str, float] = {}
        """The newest evaluation."""

    # The trial's side.

    def goes_on(self, evaluation: Evaluation) -> bool:
        """Hand the evaluation out and wait for the verdict."""
        self.latest = evaluation.metrics
        if self._is_ended.is_set():
            return False
        self._out.put(
            Point(
                step=evaluation.step,
                steps=evaluation.steps,
                index=evaluation.index,
                metrics=evaluation.metrics,
                stage=self.stage,
            )
        )
        return self._verdicts.get()

    def wants_stop(self) -> bool:
        """Whether the trial was ended, or the whole sweep is."""
        return self._is_ended.is_set() or self._is_stopping()

    def leave(self, end: TrialEnd) -> None:
        """Hand the end out."""
        self._out.put(end)

    # The other side.

    def next(self) -> Point | TrialEnd:
        """Give the verdict "go on" if one is waited for; what comes next."""
        if self._waits:
            self._verdicts.put(True)
        found = self._out.get()
        self._waits = isinstance(found, Point)
        return found

    def end(self) -> None:
        """Give the verdict "stop", now and ever after."""
        self._is_ended.set()
        self._verdicts.put(False)


class GatedTrial:
    """The trial as the job's function sees it (`contract.Trial`)."""

    def __init__(
        self, run: Run, setting: TrialSetting, branch: Location | None, gate: Gate
    ) -> None:
        self.run = run
        self.shared = setting.shared
        self._bundle, self._branch, self._gate = setting.bundle, branch, gate
        self._has_fitted = False
        self._reports = 0

    @property
    def bundle(self) -> Location:
        """The bundle that the sweep is over."""
        if self._bundle is None:
            raise Fault("this kind of trial does not say uses_bundle, so the sweep has no bundle")
        return self._bundle

    def fit(
        self,
        task: Task,
        config: FitConfig,
        *,
        resources: ResourcesConfig,
        name: str | None = None,
        start_from: Location | None = None,
    ) -> FitResult:
        """Train, judged."""
        if self._has_fitted:
            raise Fault("a trial may call trial.fit once; its other trainings are plain fit(...)")
        self._has_fitted = True
        self._gate.stage = name or task.name
        return fit(
            task,
            config,
            run=self.run,
            resources=resources,
            name=name,
            start_from=start_from,
            judge=self._gate,
            branch_from=self._branch,
        )

    def report(self, metrics: Mapping[str, float], *, step: int, steps: int) -> None:
        """Be judged."""
        self._reports += 1
        plain = {name: float(value) for name, value in metrics.items()}
        evaluation = Evaluation(step, steps, self._reports, plain)
        if self._gate.wants_stop() or not self._gate.goes_on(evaluation):
            raise JudgedToStop(f"{self.run.id} was stopped at step {step} of {steps}")


def trial_tracker(config: TrackerConfig, server: str | None) -> TrackerConfig:
    """Trials are tracked by a server only: several processes would fight over a database file."""
    return replace(config, enabled=config.enabled and server is not None, uri=server)


def as_result(found: Point | TrialEnd) -> dict[str, Any]:
    """What Ray Tune is told: an evaluation, or the end."""
    if isinstance(found, Point):
        return {"point": found}
    return {"end": found, "done": True}
