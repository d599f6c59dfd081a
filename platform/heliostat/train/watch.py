"""The driver's eye on a training: progress, the user's wish to stop, and how it ended.

Ray Train's own `fit` blocks, so it runs in a thread. This thread takes what the monitor has heard
from the workers, shows and logs it, passes a Ctrl-C on, and turns the end into an outcome or into
an error of one screen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from heliostat.checkpoint.manifest import committed, tag_of
from heliostat.config.resources import ResourcesConfig
from heliostat.errors import HeliostatError, Interrupted, StorageError, TrainingFailed
from heliostat.runs.run import Run
from heliostat.train.failure import Explanation, explain, screen
from heliostat.train.interrupt import StopRequests
from heliostat.train.judge import Evaluation, Judge, JudgedToStop
from heliostat.train.monitor import Monitor, News, Row, WorkerFailure
from heliostat.train.progress import Progress
from heliostat.train.spec import FitSpec, Outcome

logger = logging.getLogger(__name__)

POLL_S = 0.5
JUDGED_POLL_S = 0.05
"""Where workers wait for a verdict."""
EVALUATED = "eval/"
ABANDON_S = 60.0
"""Time for workers to save when the driver can no longer watch them."""
WAITING_NOTE_S = 60.0
"""Silence before the user is told that workers have not started."""


class Watch:
    """One call of Ray Train's `fit`, in a thread, watched from the caller's."""

    def __init__(
        self,
        spec: FitSpec,
        run: Run,
        resources: ResourcesConfig,
        stage: str,
        judge: Judge | None,
    ) -> None:
        self._spec, self._run, self._resources, self._stage = spec, run, resources, stage
        self._judge = judge
        self._is_condemned = False
        self._evaluations: dict[int, dict[str, float]] = {}
        self._thread = threading.Thread(target=self._fit, name=f"fit-{stage}", daemon=True)
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._last_step = 0
        self._attempts = 0
        self._is_log_broken = False

    def until_it_ends(self) -> Outcome:
        """Start the training and watch it.

        Raises:
            TrainingFailed: with the one-screen explanation.
            JudgedToStop: its judge stopped it.
            Interrupted: it was stopped on request.
        """
        with (
            Progress(self._stage, self._spec.config, self._spec.steps) as progress,
            StopRequests() as stop,
        ):
            # Asked for while others trained: then this one does not begin.
            self._heed(stop)
            self._thread.start()
            try:
                self._watch(progress, stop)
            except BaseException:
                self._abandon()
                raise
        if self._error is not None:
            raise self._failed(self._explain_error(self._error)) from self._error
        assert self._outcome is not None
        if self._outcome.status == "failed":
            raise self._failed(Explanation(self._outcome.message, step=self._outcome.step))
        if self._outcome.status == "repeated":
            raise self._failed(self._explain_habit())
        if self._outcome.status in ("stopped", "not begun"):
            kind = JudgedToStop if self._is_condemned else Interrupted
            raise kind(self._where_it_stopped(self._outcome))
        return self._outcome

    def _fit(self) -> None:
        try:
            from heliostat.train.ray_train import run_workers

            self._outcome = run_workers(self._spec, self._resources, self._run.id, self._stage)
        except BaseException as error:
            self._error = error

    def _watch(self, progress: Progress, stop: StopRequests) -> None:
        monitor = self._spec.monitor
        waiting_since = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(POLL_S if self._judge is None else JUDGED_POLL_S)
            self._heed(stop)
            news = monitor.call(Monitor.drain)
            self._take(news, progress)
            if self._judge is not None:
                self._let_judge(self._judge, news.waiting)
            if not self._attempts and time.monotonic() - waiting_since > WAITING_NOTE_S:
                waiting_since = time.monotonic()
                logger.warning(
                    "%s: still waiting for %s workers; others may use the cluster",
                    self._stage,
                    self._resources.workers,
                )
        self._take(monitor.call(Monitor.drain), progress)

    def _heed(self, stop: StopRequests) -> None:
        """Pass on a wish to stop that is new."""
        if stop.is_new():
            logger.warning("%s: stopping at the next step, with a checkpoint", self._stage)
            self._spec.monitor.call(Monitor.request_stop)

    def _let_judge(self, judge: Judge, waiting: int | None) -> None:
        """Pass on what the judge wants, and its verdict on the evaluation that waits for one."""
        monitor = self._spec.monitor
        if waiting is not None and waiting in self._evaluations:
            evaluation = Evaluation(
                step=waiting,
                steps=self._spec.steps,
                index=-(-waiting // self._spec.evaluate_every),
                metrics=self._evaluations.pop(waiting),
            )
            stops = not judge.goes_on(evaluation)
            self._is_condemned = stops
            monitor.call(Monitor.decide, waiting, stops)
        elif not self._is_condemned and judge.wants_stop():
            self._is_condemned = True
            monitor.call(Monitor.request_stop)

    def _take(self, news: News, progress: Progress) -> None:
        self._attempts = news.attempts
        for note in news.notes:
            logger.warning("%s: %s", self._stage, note)
        for row in news.rows:
            self._last_step = max(self._last_step, int(row["step"]))
            evaluated = {
                key.removeprefix(EVALUATED): value
                for key, value in row.items()
                if key.startswith(EVALUATED)
            }
            if evaluated and self._judge is not None:
                self._evaluations[int(row["step"])] = evaluated
            self._log(row)
        progress.add(news.rows)

    def _log(self, row: Row) -> None:
        """Log a row in the run; a full disk is no reason to stop what the workers do."""
        values = {key: value for key, value in row.items() if key != "step"}
        try:
            self._run.log(values, step=int(row["step"]), stage=self._stage)
        except (OSError, StorageError) as error:
            if not self._is_log_broken:
                logger.warning("%s: metrics could not be logged (%s)", self._stage, error)
            self._is_log_broken = True
        else:
            self._is_log_broken = False

    def _abandon(self) -> None:
        """Nobody will watch any longer: let the workers save and end rather than go on alone."""
        try:
            self._spec.monitor.call(Monitor.request_stop)
            self._thread.join(ABANDON_S)
        except Exception as error:
            logger.warning("%s: the workers could not be told to stop: %s", self._stage, error)

    def _explain_error(self, error: BaseException) -> Explanation:
        recorded = [item for item in self._failures() if item.attempt == self._attempts]
        return explain(recorded, getattr(error, "worker_failures", {}), error)

    def _explain_habit(self) -> Explanation:
        failures = self._failures()
        latest = max(failure.attempt for failure in failures)
        recorded = [failure for failure in failures if failure.attempt == latest]
        found = explain(recorded, {}, RuntimeError("it failed twice in the same way"))
        return Explanation(
            f"{found.sentence} (the second time in the same way, so it is not tried again)",
            found.traceback,
            found.collateral,
            found.step,
        )

    def _failures(self) -> Sequence[WorkerFailure]:
        return self._spec.monitor.call(Monitor.failures)

    def _failed(self, explanation: Explanation) -> TrainingFailed:
        text = screen(
            explanation,
            training=self._stage,
            last_step=max(self._last_step, explanation.step),
            checkpoint=self._newest_checkpoint(),
        )
        return TrainingFailed(text)

    def _newest_checkpoint(self) -> str | None:
        try:
            checkpoints = committed(self._spec.checkpoints)
        except HeliostatError as error:
            # Storage may be what failed; the explanation must not be lost to it.
            return f"unknown ({error})"
        return checkpoints[-1][0].uri if checkpoints else None

    def _where_it_stopped(self, outcome: Outcome) -> str:
        if outcome.status == "not begun":
            saved = self._newest_checkpoint()
            return f"{self._stage} was stopped before its next step; it goes on from {saved}"
        place = f"{self._stage} was stopped at step {outcome.step} of {self._spec.steps}"
        if outcome.saved_step == outcome.step:
            return f"{place}, and saved"
        last = "none" if outcome.saved_step is None else tag_of(outcome.saved_step)
        return f"{place}, but it could not be saved there; the last good checkpoint is {last}"
