"""A lock on a run folder, so that two processes never write to the same run.

The lock is one small file, `lock.json`: who holds it (host, process id, start time of the process)
and a heartbeat that counts up. A holder on the same host is dead when its process is gone. A holder
elsewhere is dead when its heartbeat stands still while we watch, so the clocks of two machines are
never compared to refuse somebody. Locally the taking of a lock is atomic (`flock` around a short
critical section). An object store offers no such thing through pyarrow: there the later of two
simultaneous takers wins, and the other one notices, at once or at its next heartbeat.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from heliostat.errors import Fault, StorageError, UserError
from heliostat.runs.canonical import pretty
from heliostat.storage import Location

logger = logging.getLogger(__name__)

LOCK_NAME = "lock.json"
_GUARD_NAME = ".lock.guard"
_START_TOLERANCE_S = 5.0


class RunBusyError(UserError):
    """Another live process works on the run."""


@dataclass(frozen=True)
class LockTiming:
    """How often a holder shows that it lives, and how long its silence must last."""

    beat_s: float = 10.0
    """Seconds between two heartbeats."""
    stale_s: float = 45.0
    """Seconds that a heartbeat from another host must stand still before the lock is taken over."""
    long_dead_s: float = 900.0
    """Age in seconds past which a heartbeat is not even watched; wide enough for unequal clocks."""
    settle_s: float = 1.0
    """Seconds between writing and re-reading a lock on an object store."""


DEFAULT_TIMING = LockTiming()


@dataclass(frozen=True)
class Holder:
    """The content of a lock file."""

    host: str
    space: str
    """The process-id namespace: two containers may share a host name, not their process ids."""
    pid: int
    started: float
    """When the process started, in seconds since 1970."""
    token: str
    beat: int
    beat_at: float
    """When the last heartbeat was written, by the holder's clock."""

    @property
    def is_here(self) -> bool:
        """Whether the holder's process id means something to this process."""
        return (self.host, self.space) == (platform.node(), _pid_space())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class RunLock:
    """A lock that this process holds; it beats in a thread until it is released."""

    def __init__(self, folder: Location, holder: Holder, timing: LockTiming) -> None:
        self._folder = folder
        self._holder = holder
        self._timing = timing
        self._released = threading.Event()
        self._taken_by: Holder | None = None
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise a Fault if another process has taken the run over."""
        if self._taken_by is not None:
            raise Fault(
                f"{self._folder.uri} was taken over by {self._taken_by}: this process stopped "
                "writing to it"
            )

    def release(self) -> None:
        """Stop the heartbeat and give the run free."""
        self._released.set()
        self._thread.join()
        seen = read_lock(self._folder)
        if seen is not None and seen.token == self._holder.token:
            (self._folder / LOCK_NAME).delete()

    def _beat(self) -> None:
        while not self._released.wait(self._timing.beat_s):
            try:
                seen = read_lock(self._folder)
                if seen is None or seen.token == self._holder.token:
                    self._holder = replace(
                        self._holder, beat=self._holder.beat + 1, beat_at=time.time()
                    )
                    _write_lock(self._folder, self._holder)
                    continue
            except (StorageError, UserError) as error:
                logger.warning("the heartbeat of %s failed: %s", self._folder.uri, error)
                continue
            self._taken_by = seen
            logger.error("%s was taken over by %s", self._folder.uri, seen)
            return


def acquire_lock(
    folder: Location, timing: LockTiming = DEFAULT_TIMING
) -> tuple[RunLock, Holder | None]:
    """Lock a run folder; returns the lock and the dead holder it was taken from, if any.

    Raises `RunBusyError` when a live process holds it.
    """
    folder.make_dir()
    mine = _this_process()
    while True:
        seen = read_lock(folder)
        if seen is not None:
            _refuse_if_alive(folder, seen, timing)
            logger.warning("%s was left behind by %s: taking it over", folder.uri, seen)
        with _critical_section(folder):
            now = read_lock(folder)
            if (now and now.token) == (seen and seen.token):
                _write_lock(folder, mine)
                break
    if not folder.is_local:
        time.sleep(timing.settle_s)
        now = read_lock(folder)
        if now is not None and now.token != mine.token:
            raise RunBusyError(f"{folder.uri} was taken by {now} at the same moment")
    return RunLock(folder, mine, timing), seen


def read_lock(folder: Location) -> Holder | None:
    """Who holds a run folder, dead or alive; None when nobody does."""
    file = folder / LOCK_NAME
    if not file.exists():
        return None
    try:
        return Holder(**json.loads(file.read_text()))
    except UserError:
        return None  # released between the two calls
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file.uri} is no lock of a run; delete it if nothing runs there"
        ) from error


def is_held(folder: Location, timing: LockTiming = DEFAULT_TIMING) -> bool:
    """Whether a process seems to work on the run now; a quick look that never waits."""
    seen = read_lock(folder)
    if seen is None:
        return False
    return _is_running(seen) if seen.is_here else time.time() - seen.beat_at < timing.stale_s


def _refuse_if_alive(folder: Location, seen: Holder, timing: LockTiming) -> None:
    if seen.is_here:
        alive = _is_running(seen)
    elif time.time() - seen.beat_at > timing.long_dead_s:
        alive = False
    else:
        alive = _beats(folder, seen, timing)
    if alive:
        raise RunBusyError(
            f"{folder.uri} is being worked on by {seen}; wait for it, stop it, or start a run of "
            "another name"
        )


def _beats(folder: Location, seen: Holder, timing: LockTiming) -> bool:
    """Watch a lock from another host until its heartbeat moves or stood still for long enough."""
    logger.warning("%s: watching for up to %.0f s whether %s lives", folder, timing.stale_s, seen)
    deadline = time.monotonic() + timing.stale_s
    while time.monotonic() < deadline:
        time.sleep(min(1.0, timing.stale_s / 10))
        now = read_lock(folder)
        if now is None:
            return False
        if (now.token, now.beat) != (seen.token, seen.beat):
            return True
    return False


def _is_running(holder: Holder) -> bool:
    import psutil

    try:
        process = psutil.Process(holder.pid)
        # A zombie has ended; only its parent has not asked for its exit code yet.
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(abs(process.create_time() - holder.started) < _START_TOLERANCE_S)
    except psutil.NoSuchProcess:
        return False


def _this_process() -> Holder:
    import psutil

    return Holder(
        host=platform.node(),
        space=_pid_space(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        token=uuid.uuid4().hex,
        beat=0,
        beat_at=time.time(),
    )


def _pid_space() -> str:
    namespace = Path("/proc/self/ns/pid")
    return str(namespace.readlink()) if namespace.is_symlink() else ""


def _write_lock(folder: Location, holder: Holder) -> None:
    (folder / LOCK_NAME).write_text(pretty(asdict(holder)))


@contextmanager
def _critical_section(folder: Location) -> Iterator[None]:
    """Keep the other processes of this machine out; on an object store nothing can."""
    if not folder.is_local:
        yield
        return
    with (folder.local_path / _GUARD_NAME).open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield
