"""A sweep from its first trial to its table: what `heliostat sweep` does between opening and end.

The sweep is a run of its own. Its folder holds

    ledger/                  one record a trial (`ledger.py`)
    trials/t000/, ...        the run of each trial
    stages/                  what all trials share
    sweep.parquet, evaluations.parquet, best.yaml, report/

Everything may die at any moment: a sweep that goes on reads the ledger, starts what is not finished
where its run stands, and never a finished trial.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from heliostat.cluster.cluster_reader import read_cluster
from heliostat.cluster.ray_cluster import own_address
from heliostat.cluster.resources import ResourceRequest
from heliostat.config.resources import ONE
from heliostat.errors import Fault, HeliostatError, Interrupted, TrainingFailed
from heliostat.runs.run import Run
from heliostat.runs.summary import RunSummary
from heliostat.runs.tracker_address import tracker_address
from heliostat.storage import Location
from heliostat.sweep.contract import Shared, TrialKind
from heliostat.sweep.director import Director
from heliostat.sweep.ledger import TrialRecord
from heliostat.sweep.outcome import Outcome, judge_sweep
from heliostat.sweep.performance import TrialSetting, trial_tracker
from heliostat.sweep.plan import SweepPlan, spelled
from heliostat.sweep.report import write_sweep_report
from heliostat.sweep.slots import compute_slots
from heliostat.sweep.tables import TABLE, write_best, write_tables
from heliostat.sweep.tuning import FOLDER, TuneRequest, run_trials
from heliostat.train.interrupt import StopRequests
from heliostat.train.monitor import Monitor
from heliostat.train.monitor_handle import MonitorHandle, start_monitor

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 60.0
ROWS_SHOWN = 30
"""Trials on the last screen; the Parquet table has them all."""


@dataclass(frozen=True)
class SweepJob:
    """What is swept."""

    job: str
    module: str
    """The job's `sweep.py`, by import name."""
    kind: TrialKind
    bundle: Location | None
    """The bundle that the sweep is over, verified."""


def sweep(
    plan: SweepPlan, job: SweepJob, run: Run, shown_path: str, tell: Callable[[str], None]
) -> RunSummary:
    """Run the trials that are not finished, and write down what all of them found.

    Args:
        plan: the checked sweep.
        job: what is swept.
        run: the sweep's own run.
        shown_path: the folder of the run as the user would type it.
        tell: shows the user a line.

    Raises:
        InfeasibleError: not one trial fits on the cluster.
        Interrupted: stopped on request; trials at work have saved.
        TrainingFailed: no trial has a value.
    """
    config = plan.loaded.config
    shared = job.kind.shared(config, run)
    director = Director(plan, run.folder, tell)
    if director.left:
        _run_all(director, plan, job, run, shared, tell)
    outcome = judge_sweep(plan.settings, director.ledger.records())
    return _finish(plan, job, run, shared, outcome, shown_path)


def _run_all(
    director: Director,
    plan: SweepPlan,
    job: SweepJob,
    run: Run,
    shared: Shared,
    tell: Callable[[str], None],
) -> None:
    config = plan.loaded.config
    resources = config.resources if job.kind.trains else replace(config.resources, workers=ONE)
    slots = compute_slots(
        ResourceRequest.of(resources),
        read_cluster(),
        trials=director.left,
        parallel=plan.settings.parallel,
    )
    tell(slots.sentence)
    monitor = start_monitor()
    setting = TrialSetting(
        sweep=run.folder,
        job=job.job,
        module=job.module,
        kind=plan.settings.trial,
        shared=dict(shared.values),
        bundle=job.bundle,
        tracker=trial_tracker(config.tracker, _server(run, config.tracker.uri)),
        own_cluster=own_address(),
        is_stopping=partial(_is_stopping, monitor),
    )
    request = TuneRequest(
        setting=setting,
        at_once=slots.at_once,
        cpus=0.0 if job.kind.trains else resources.cpus_per_worker,
        gpus=0.0 if job.kind.trains else resources.gpus_per_worker,
        max_failures=plan.settings.max_failures,
    )
    scratch = run.folder / FOLDER
    with StopRequests() as stop:
        news = _News(director, tell)

        def each() -> None:
            if stop.is_new():
                tell("stopping: trials at work save a checkpoint first")
                director.close()
                monitor.call(Monitor.request_stop)
            news.tell_sometimes()

        run_trials(director, request, scratch, each)
    _tidy(scratch)
    records = director.ledger.records()
    is_cut_off = any(record.is_open for record in records)
    if director.is_closed and (is_cut_off or director.left):
        done = sum(not record.is_open for record in records)
        raise Interrupted(f"the sweep was stopped after {done} of {plan.trials} trials")
    if is_cut_off:
        raise Fault("the sweep ended before its trials did")


class _News:
    """A line from time to time while trials take long."""

    def __init__(self, director: Director, tell: Callable[[str], None]) -> None:
        self._director, self._tell = director, tell
        self._last = time.monotonic()

    def tell_sometimes(self) -> None:
        if time.monotonic() - self._last >= PROGRESS_EVERY_S:
            self._last = time.monotonic()
            self._tell(f"{self._director.running} trials at work, {self._director.left} to start")


def _is_stopping(monitor: MonitorHandle) -> bool:
    """Whether the user has asked the sweep to stop; called in the processes of trials."""
    return monitor.call(Monitor.exchange, [], [])


def _server(run: Run, configured: str | None) -> str | None:
    """The tracker's address where it is a server."""
    uri = tracker_address(run.folder.parent, configured).uri
    return uri if uri.startswith(("http://", "https://")) else None


def _finish(
    plan: SweepPlan, job: SweepJob, run: Run, shared: Shared, outcome: Outcome, shown_path: str
) -> RunSummary:
    write_tables(run.folder, outcome)
    failed = [record for record in outcome.records if record.status in ("failed", "refused")]
    best = outcome.best
    if best is None:
        first = failed[0] if failed else None
        why = f"; {first.name}: {first.error}" if first else ""
        raise TrainingFailed(
            f"no trial of {len(outcome.records)} ended with {plan.settings.metric}{why}"
        )
    file = write_best(run.folder, plan, best, job.job)
    report = write_sweep_report(run, plan, job.job, outcome, shared.inputs)
    metrics = {plan.settings.metric: best.value(plan.settings.metric)}
    run.finish({**metrics, "trials": len(outcome.records), "steps": outcome.steps})
    notes = [f"best: {best.name}, {spelled(best.values)}"]
    if len(outcome.records) > ROWS_SHOWN:
        notes.append(f"The other {len(outcome.records) - ROWS_SHOWN} trials are in {TABLE}.")
    if failed:
        names = ", ".join(record.name for record in failed)
        notes.append(f"Without a result: {names}; the reasons are in {TABLE}.")
    return RunSummary(
        title=_title(plan, outcome),
        columns=outcome.columns,
        rows=tuple(outcome.rows()[:ROWS_SHOWN]),
        paths={
            "report": report.uri,
            "table": (run.folder / TABLE).uri,
            "best config": file.uri,
        },
        next_command=_next_command(job, best, f"{shown_path}/{file.name}"),
        notes=tuple(notes),
    )


def _next_command(job: SweepJob, best: TrialRecord, config: str) -> str:
    if not job.kind.uses_bundle:
        return f"heliostat train {job.job} --config {config}"
    served = f"heliostat serve {job.job} {job.bundle}"
    # What is swept over a bundle but not read by the endpoint is said with each request.
    return f"{served} {spelled(best.values)}" if job.kind.is_served else served


def _title(plan: SweepPlan, outcome: Outcome) -> str:
    settings = plan.settings
    best = "highest" if settings.mode == "max" else "lowest"
    text = f"{len(outcome.records)} trials, the {best} {settings.metric} first"
    return text + (f"; {outcome.steps:,} optimiser steps in all" if outcome.steps else "")


def _tidy(bookkeeping: Location) -> None:
    """Remove what Ray Tune keeps of its own; no sweep fails because of it."""
    try:
        bookkeeping.delete()
    except HeliostatError as error:
        logger.warning("%s could not be removed: %s", bookkeeping.uri, error)
