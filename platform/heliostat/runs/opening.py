"""How a run folder is taken: a new one under a free name, or an old one to go on with.

`run.json` is written last, so a folder without it is no run yet, whatever else a crash left there.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml

from heliostat.config.dump import MAY_DIFFER, differing_keys
from heliostat.errors import UserError
from heliostat.runs import clock
from heliostat.runs.canonical import pretty
from heliostat.runs.differences import ABSENT, flatten_config
from heliostat.runs.environment import code_state, hardware, versions
from heliostat.runs.lock import Holder, LockTiming, RunBusyError, RunLock, acquire_lock
from heliostat.runs.record import RESULT_NAME, Attempt, RunRecord, read_record, write_record
from heliostat.storage import Location

logger = logging.getLogger(__name__)

IDENTITY_NAME = "run.json"
CONFIG_NAME = "config.yaml"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHOWN_DIFFERENCES = 8


@dataclass(frozen=True)
class RunSpec:
    """What a run is started with."""

    job: str
    resolved_yaml: str
    digest: str
    """Of what in the config decides the result: a run goes on only with the same one."""
    seed: int


@dataclass(frozen=True)
class Identity:
    """What makes a run this run; the content of `run.json`."""

    id: str
    job: str
    seed: int
    digest: str
    created: str


@dataclass(frozen=True)
class Opened:
    """A run folder that this process holds, with its attempt on record."""

    identity: Identity
    folder: Location
    lock: RunLock
    record: RunRecord


def open_new(out: Location, spec: RunSpec, name: str | None, timing: LockTiming) -> Opened:
    """Take a folder that no run has; without a name it is named by job, config and time."""
    if name is not None:
        lock = _take_free(out / checked_id(name), timing)
        if lock is None:
            raise UserError(
                f"a run named {name} exists in {out.uri}; go on with it by "
                f"`heliostat train {spec.job} --run {name}`, or choose another name"
            )
        return _begin(out, spec, name, lock)
    stem = f"{spec.job}-{spec.digest[:6]}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    for identifier in (checked_id(stem), *(f"{stem}-{count}" for count in range(2, 1000))):
        try:
            lock = _take_free(out / identifier, timing)
        except RunBusyError:
            continue
        if lock is not None:
            return _begin(out, spec, identifier, lock)
    raise UserError(f"{out.uri} holds a thousand runs that start with {stem}; give a name")


def open_again(out: Location, spec: RunSpec, name: str, timing: LockTiming) -> Opened:
    """Take the folder of a run to go on with it; a name that no run has starts a new one."""
    folder = out / checked_id(name)
    lock, dead = acquire_lock(folder, timing)
    try:
        if not (folder / IDENTITY_NAME).exists():
            return _begin(out, spec, name, lock)
        identity = read_identity(folder)
        _refuse_other_config(folder, identity, spec)
        record = _known_record(folder, identity)
        record = _next_attempt(_close_attempts(record, dead))
        (folder / CONFIG_NAME).write_text(spec.resolved_yaml)
        write_record(folder, record)
    except BaseException:
        lock.release()
        raise
    logger.info("run %s goes on: attempt %d", name, record.attempts[-1].number)
    return Opened(identity, folder, lock, record)


def read_identity(folder: Location) -> Identity:
    """Read `run.json`."""
    file = folder / IDENTITY_NAME
    try:
        return Identity(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file.uri} does not identify a run: {error}") from error


def checked_id(name: str) -> str:
    """The name, if it can name a folder anywhere."""
    if not _ID.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a run: use up to 128 letters, digits, dots, dashes and "
            "underscores, beginning with a letter or digit"
        )
    return name


def _take_free(folder: Location, timing: LockTiming) -> RunLock | None:
    """The lock of a folder that holds no run; None when it does hold one."""
    if (folder / IDENTITY_NAME).exists():
        return None
    lock, _ = acquire_lock(folder, timing)
    if (folder / IDENTITY_NAME).exists():
        lock.release()
        return None
    return lock


def _begin(out: Location, spec: RunSpec, name: str, lock: RunLock) -> Opened:
    folder = out / name
    identity = Identity(name, spec.job, spec.seed, spec.digest, created=clock.now())
    record = _next_attempt(_blank_record(identity))
    try:
        (folder / CONFIG_NAME).write_text(spec.resolved_yaml)
        write_record(folder, record)
        (folder / IDENTITY_NAME).write_text(pretty(asdict(identity)))
    except BaseException:
        lock.release()
        raise
    return Opened(identity, folder, lock, record)


def _refuse_other_config(folder: Location, identity: Identity, spec: RunSpec) -> None:
    if identity.job != spec.job:
        raise UserError(
            f"run {identity.id} belongs to the job {identity.job}, not to {spec.job}; choose "
            "another name"
        )
    if identity.digest == spec.digest:
        return
    texts = ((folder / CONFIG_NAME).read_text(), spec.resolved_yaml)
    old, new = (yaml.safe_load(text) for text in texts)
    # What is no part of a run's digest may be part of a sweep's.
    of_a_sweep = [key for key in MAY_DIFFER if key != "sweep"]
    keys = differing_keys(old, new) or differing_keys(old, new, of_a_sweep)
    before, after = (flatten_config(text) for text in texts)
    shown = [f"{key} was {before.get(key, ABSENT)} and is {after.get(key, ABSENT)}" for key in keys]
    more = len(shown) - _SHOWN_DIFFERENCES
    listed = "; ".join(shown[:_SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
    raise UserError(
        f"run {identity.id} was started with another config: {listed or 'it has another digest'}. "
        "Go on with the config it has, or choose another name"
    )


def _known_record(folder: Location, identity: Identity) -> RunRecord:
    if (folder / RESULT_NAME).exists():
        return read_record(folder)
    return _blank_record(identity)


def _blank_record(identity: Identity) -> RunRecord:
    return RunRecord(
        id=identity.id,
        job=identity.job,
        status="running",
        seeds=(identity.seed,),
        digest=identity.digest,
        created=identity.created,
        seconds=0.0,
        metrics={},
        stages={},
        attempts=(),
        versions={},
        hardware={},
        code={},
    )


def _close_attempts(record: RunRecord, dead: Holder | None) -> RunRecord:
    """End the attempts that could not do so themselves, at their last heartbeat if it is left."""
    for attempt in record.attempts:
        if attempt.status == "running":
            ended = clock.at(dead.beat_at) if dead and dead.pid == attempt.pid else None
            record = record.with_attempt(
                replace(attempt, status="interrupted", ended=ended, error="its process died")
            )
    return record


def _next_attempt(record: RunRecord) -> RunRecord:
    attempt = Attempt(
        number=len(record.attempts) + 1,
        status="running",
        host=platform.node(),
        pid=os.getpid(),
        started=clock.now(),
        ended=None,
    )
    fresh = replace(
        record,
        status="running",
        versions=versions(),
        hardware=hardware(),
        code=code_state(Path.cwd()),
    )
    return fresh.with_attempt(attempt)
