"""The mind of a sweep: which trial comes next, and what becomes of each after an evaluation.

It holds the ledger, the searcher and the scheduler, and knows nothing of Ray: `tuning.py` asks it
for orders and tells it what happened. It is called from one thread.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from heliostat.checkpoint.manifest import committed, read_manifest
from heliostat.checkpoint.retention import pin, unpin
from heliostat.config.contract import JobConfig
from heliostat.config.load import LoadedConfig
from heliostat.errors import ConfigError
from heliostat.runs import clock
from heliostat.runs.stages import TRIALS
from heliostat.storage import Location
from heliostat.sweep.ledger import Ledger, Point, Status, TrialRecord, trial_name
from heliostat.sweep.plan import SweepPlan, spelled
from heliostat.sweep.policy import Population, Replacement, make_policy
from heliostat.sweep.proposer import make_proposer
from heliostat.sweep.space import Values

CHANGE_TRIES = 20
"""How often changed values that the job refuses are drawn again."""


@dataclass(frozen=True)
class TrialOrder:
    """What the process of a trial is told."""

    name: str
    loaded: LoadedConfig[JobConfig]
    saves: bool
    """Whether each evaluation needs a checkpoint."""
    branch: Location | None
    """The checkpoint to begin with."""


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended by itself."""

    status: Status
    metrics: dict[str, float]
    error: str | None = None


class Director:
    """Decides, and keeps the ledger."""

    def __init__(self, plan: SweepPlan, sweep: Location, tell: Callable[[str], None]) -> None:
        self._plan, self._settings, self._sweep, self._tell = plan, plan.settings, sweep, tell
        self.ledger = Ledger(sweep)
        records = self.ledger.records()
        self._policy = make_policy(self._settings)
        self._proposer = make_proposer(plan, records)
        self._running: dict[str, float] = {}
        """When each trial at work was started."""
        self._queue = [self._again(record).name for record in self._unfinished(records)]
        if isinstance(self._policy, Population):
            self._queue += [self._begun(n).name for n in range(self._numbers(), plan.trials)]
        self._spent_s = self.ledger.elapsed_s()
        self._began = time.monotonic()
        self._is_closing = False

    def _unfinished(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """What was cut off; a trial that failed is tried once more, as a run would be."""
        newest = {record.number: record for record in records}
        for record in records:
            if record.is_open and newest[record.number] is not record:
                # It was being replaced when everything was killed.
                self.ledger.write(self._gone(record))
        return [record for record in newest.values() if record.is_open or record.status == "failed"]

    def _again(self, record: TrialRecord) -> TrialRecord:
        """What was at work waits for a place."""
        status: Status = "paused" if record.status == "paused" else "waiting"
        return self.ledger.write(replace(record, status=status))

    def _begun(self, number: int) -> TrialRecord:
        """A new trial on record."""
        values = self._proposer.propose(number)
        return self.ledger.write(TrialRecord(trial_name(number), number, values))

    @property
    def left(self) -> int:
        """How many trials may still be started."""
        return len(self._queue) + max(0, self._plan.trials - self._numbers())

    @property
    def running(self) -> int:
        """How many trials are at work."""
        return len(self._running)

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is started."""
        return self._is_closing

    def close(self) -> None:
        """Start nothing more."""
        self._is_closing = True

    # Orders.

    def next(self) -> TrialOrder | None:
        """The next trial; None when there is none now."""
        if self._is_closing:
            return None
        while (record := self._next_record()) is not None:
            try:
                loaded = self._plan.config_of(record.values)
            except ConfigError as error:
                self.ledger.end(record.name, "refused", error=str(error))
                self._tell(f"{record.name} is not started ({spelled(record.values)}): {error}")
                continue
            self._running[record.name] = time.monotonic()
            self.ledger.write(
                replace(
                    record,
                    status="running",
                    attempts=record.attempts + 1,
                    started=record.started or clock.now(),
                    ended=None,
                    error=None,
                )
            )
            branch = Location.of(record.branch) if record.branch is not None else None
            return TrialOrder(record.name, loaded, self._policy.saves, branch)
        return None

    def is_over(self) -> bool:
        """Whether there will be no further order."""
        return not self._running and (self._is_closing or not self._has_more())

    def _next_record(self) -> TrialRecord | None:
        self._close_outdone()
        waiting = [self.ledger[name] for name in self._queue]
        record = self._policy.pick(waiting, self.ledger.records(), self._unstarted())
        if record is not None:
            self._queue.remove(record.name)
            return self._after_a_pause(record)
        return self._begun(self._numbers()) if self._may_begin() else None

    def _close_outdone(self) -> None:
        """End the paused trials that will never go on."""
        for record in self._policy.outdone(self.ledger.records(), self._unstarted()):
            if record.name in self._queue:
                self._queue.remove(record.name)
            self._close(record.name, "stopped", dict(record.points[-1].metrics), None)

    def _unstarted(self) -> int:
        """How many trials may still be begun."""
        return self._plan.trials - self._numbers() if self._may_begin() else 0

    def _after_a_pause(self, record: TrialRecord) -> TrialRecord:
        """A paused member, or what replaces it now that the others have caught up."""
        if record.status == "paused" and record.points and isinstance(self._policy, Population):
            point = record.points[-1]
            decision = self._policy.compare(record, point, self._others(record))
            if isinstance(decision, Replacement):
                child = self._replaced(record, decision.donor)
                if child is not None:
                    return child
        return record

    def _may_begin(self) -> bool:
        budget = self._settings.budget
        if self._numbers() >= self._plan.trials:
            return False
        if budget.steps is not None:
            spent = sum(record.steps for record in self.ledger.records())
            if spent >= budget.steps:
                return False
        minutes = self._elapsed_s() / 60
        return budget.minutes is None or minutes < budget.minutes

    def _elapsed_s(self) -> float:
        """Wall-clock seconds, those before a restart included."""
        return self._spent_s + time.monotonic() - self._began

    def _has_more(self) -> bool:
        return bool(self._queue) or self._may_begin()

    def _numbers(self) -> int:
        """How many trials there are, replaced members counted once."""
        return len({record.number for record in self.ledger.records()})

    # What happened.

    def judge(self, name: str, point: Point) -> bool:
        """Note an evaluation; whether the process of the trial goes on.

        It does as well when the trial pauses: it finds that in the ledger, and says when it is out.
        """
        record = self.ledger.write(self.ledger[name].at(point))
        self.ledger.note_elapsed(self._elapsed_s())
        self._release(record)
        decision = self._policy.decide(record, point, self._others(record), self._unstarted())
        if decision == "continue" or point.step >= point.steps:
            return True
        if isinstance(decision, Replacement):
            child = self._replaced(record, decision.donor)
            if child is None:
                return True
            self._queue.insert(0, child.name)
        elif decision == "pause":
            # Its process reads this, saves and ends; only then another one may go on with it.
            self.ledger.write(replace(record, status="paused"))
            self._proposer.learn(self.ledger[name])
            return True
        else:
            self._close(name, "stopped", dict(point.metrics), None)
        return False

    def end(self, name: str, end: TrialEnd) -> None:
        """Note that a trial ended by itself."""
        if name not in self._running:
            return
        if end.status == "paused":
            self.ledger.write(self._timed(self.ledger[name], "paused"))
            self._queue.append(name)
        elif end.status == "waiting":
            self.ledger.write(self._timed(self.ledger[name], "waiting"))
        else:
            self._close(name, end.status, end.metrics, end.error)

    def lost(self, name: str, error: str) -> None:
        """Note that the process of a trial died too often."""
        if name in self._running:
            self._close(name, "failed", {}, error)

    def _close(
        self, name: str, status: Status, metrics: dict[str, float], error: str | None
    ) -> None:
        record = self._timed(self.ledger[name], status)
        record = replace(record, metrics=metrics, error=error, ended=clock.now())
        self.ledger.write(record)
        self.ledger.note_elapsed(self._elapsed_s())
        self._release(record)
        self._proposer.learn(record)
        self._tell(self._sentence(record))

    def _timed(self, record: TrialRecord, status: Status) -> TrialRecord:
        """The record of a trial that is not at work any more."""
        began = self._running.pop(record.name, None)
        worked = 0.0 if began is None else time.monotonic() - began
        return replace(record, status=status, seconds=record.seconds + worked)

    def _sentence(self, record: TrialRecord) -> str:
        metric = self._settings.metric
        done = sum(not one.is_open for one in self.ledger.records())
        outcome = f"{metric} {record.value(metric):.4g}"
        if record.status == "stopped":
            outcome += f", stopped at step {record.points[-1].step} of {record.points[-1].steps}"
        if record.status == "failed":
            outcome = f"failed: {(record.error or '').splitlines()[0]}"
        return f"{record.name} ({done} of {self._total()}): {spelled(record.values)}: {outcome}"

    def _total(self) -> int:
        """How many records there will be, as far as is known."""
        return max(self._plan.trials, len(self.ledger.records()))

    # Populations.

    def _replaced(self, record: TrialRecord, donor: TrialRecord) -> TrialRecord | None:
        """Put a changed copy of the donor in a member's place; None if it has no checkpoint."""
        generation = record.generation + 1
        name = trial_name(record.number, generation)
        found = self._pinned(donor, name)
        if found is None:
            return None
        branch, step = found
        child = TrialRecord(
            name=name,
            number=record.number,
            values=self._changed(donor, name),
            status="waiting",
            generation=generation,
            parent=donor.name,
            parent_step=step,
            branch=branch.uri,
        )
        # The child first: a member that is killed in between has two records, never none.
        self.ledger.write(child)
        self.ledger.write(self._gone(record))
        self._tell(
            f"{record.name} gives way to {name}: from {donor.name} at step {step}, with "
            f"{spelled(child.values)}"
        )
        return child

    def _gone(self, record: TrialRecord) -> TrialRecord:
        """The record of a member that was replaced."""
        metrics = dict(record.points[-1].metrics)
        return replace(self._timed(record, "replaced"), metrics=metrics, ended=clock.now())

    def _changed(self, donor: TrialRecord, name: str) -> Values:
        """The donor's values, changed a little, as a config that the job accepts."""
        pbt = self._settings.pbt
        generator = random.Random(f"{self._settings.seed}-{name}")
        for _ in range(CHANGE_TRIES):
            values = self._plan.space.changed(
                donor.values, generator, resample=pbt.resample, factor=pbt.factor
            )
            try:
                self._plan.config_of(values)
            except ConfigError:
                continue
            return values
        return donor.values

    def _pinned(self, donor: TrialRecord, child: str) -> tuple[Location, int] | None:
        """The donor's newest checkpoint, kept from being removed until the child has read it."""
        training = self._sweep / TRIALS / donor.name / "stages" / donor.points[-1].stage
        evaluated = {point.step for point in donor.points}
        for folder, manifest in reversed(committed(training / "checkpoints")):
            if manifest.state.step in evaluated:
                pin(folder, child)
                # The donor trains on, and may have removed it just now.
                if read_manifest(folder) is not None:
                    return folder, manifest.state.step
        return None

    def _release(self, record: TrialRecord) -> None:
        """A trial that has been evaluated has read what it began with."""
        if record.branch is not None and len(record.points) <= 1:
            unpin(Location.of(record.branch), record.name)

    def _others(self, record: TrialRecord) -> list[TrialRecord]:
        """All other trials."""
        return [one for one in self.ledger.records() if one.name != record.name]
