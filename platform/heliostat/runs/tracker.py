"""The experiment tracker (MLflow), fed by a thread so that training never waits for it.

A `Tracker` takes metrics, tags, files and models into a bounded queue and returns at once. Its
thread imports MLflow (seconds), finds or starts the tracked run and delivers. When the tracker is
away this is said once, deliveries are tried again with growing pauses, and the oldest entries go
when the queue is full: the run folder has every metric in any case.

A run that goes on is the same tracked run: its MLflow id is kept in `tracker.json` in the run
folder and, should a process die before that is written, found again by a tag.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heliostat.errors import HeliostatError
from heliostat.runs.canonical import pretty
from heliostat.storage import Location

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

TRACKER_NAME = "tracker.json"
RUN_TAG = "heliostat.run"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_UNUSUAL = re.compile(r"[^\w\-. :/]")
_LONGEST_VALUE = 6000
_BATCH = 1000
_PARAMS_BATCH = 100


@dataclass(frozen=True)
class TrackedRun:
    """What the tracker must know to find or start the tracked run."""

    run_id: str
    folder: Location
    experiment: str
    uri: str
    """A server or a database (`sqlite:////path/mlflow.db`)."""
    artefacts: str | None
    """Where the tracker keeps artefacts of a new experiment; None leaves it to the server."""
    parameters: Mapping[str, str]
    """Logged once, when the tracked run starts."""


@dataclass(frozen=True)
class TrackerTiming:
    """How patient the tracker's thread is."""

    retry_s: float = 1.0
    """Pause after the first failed delivery; it doubles with every further one."""
    longest_retry_s: float = 60.0
    request_s: int = 10
    """Time limit of one request to a server."""
    queue: int = 50_000
    """Entries kept while the tracker is away."""


DEFAULT_TIMING = TrackerTiming()


@dataclass(frozen=True)
class _MetricEntry:
    name: str
    value: float
    step: int
    at_ms: int


@dataclass(frozen=True)
class _Call:
    """Anything but a metric."""

    act: Callable[[_Session], None]


class Tracker:
    """One tracked run; every method returns at once and none ever raises."""

    def __init__(self, target: TrackedRun, timing: TrackerTiming = DEFAULT_TIMING) -> None:
        self._target = target
        self._timing = timing
        self._queue: deque[_MetricEntry | _Call] = deque()
        self._dropped = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._deliver_all, name="tracker", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics at a step."""
        now = int(time.time() * 1000)
        self._put(
            _MetricEntry(_UNUSUAL.sub("_", name), float(value), step, now)
            for name, value in metrics.items()
        )

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the tracked run."""
        self._put([_Call(lambda session: session.tag(tags))])

    def register(self, model: str, source: Location, tags: Mapping[str, str]) -> None:
        """Add a version of a model to the model registry."""
        self._put([_Call(lambda session: session.register(model, source, tags))])

    def attach(self, file: Path) -> None:
        """Copy a small file to the tracked run's artefacts."""
        self._put([_Call(lambda session: session.attach(file))])

    def finish(self, status: str, limit_s: float = 30.0) -> None:
        """Deliver what is queued and end the tracked run, but wait for `limit_s` at most."""
        self._put([_Call(lambda session: session.end(_STATUS[status]))])
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(limit_s)
        missing = self._dropped + len(self._queue)
        if missing or self._thread.is_alive():
            logger.warning(
                "the tracker at %s did not get %d entries of run %s; the run folder has them all",
                _shown(self._target.uri),
                missing,
                self._target.run_id,
            )

    def _put(self, entries: Iterable[_MetricEntry | _Call]) -> None:
        with self._changed:
            for entry in entries:
                if len(self._queue) >= self._timing.queue:
                    self._queue.popleft()
                    self._dropped += 1
                self._queue.append(entry)
            self._changed.notify_all()

    def _deliver_all(self) -> None:
        session: _Session | None = None
        failures = 0
        while batch := self._next_batch():
            try:
                session = session or _open_session(self._target, self._timing)
                session.deliver(batch)
            # Whatever a tracker raises, training goes on; nothing is lost, so nothing is re-raised.
            except Exception as error:
                failures += 1
                if failures == 2:
                    self._say_away(error)
                self._put_back([] if _is_refusal(error) else batch)
                if not self._pause(failures):
                    return
                continue
            if failures >= 2:
                logger.warning("the tracker at %s is back", _shown(self._target.uri))
            failures = 0

    def _next_batch(self) -> list[_MetricEntry | _Call]:
        """Metrics up to a request's size, or one call; waits for some, empty at the very end."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            if self._queue and isinstance(self._queue[0], _Call):
                return [self._queue.popleft()]
            batch: list[_MetricEntry | _Call] = []
            while self._queue and isinstance(self._queue[0], _MetricEntry) and len(batch) < _BATCH:
                batch.append(self._queue.popleft())
            return batch

    def _put_back(self, batch: list[_MetricEntry | _Call]) -> None:
        with self._changed:
            room = self._timing.queue - len(self._queue)
            kept = batch[-room:] if room > 0 else []
            self._dropped += len(batch) - len(kept)
            self._queue.extendleft(reversed(kept))

    def _pause(self, failures: int) -> bool:
        """Wait before the next try; False when the run is over and the tracker still away."""
        pause = min(self._timing.longest_retry_s, self._timing.retry_s * 2.0 ** (failures - 1))
        with self._changed:
            self._changed.wait_for(lambda: self._closing, timeout=pause)
            return not self._closing or failures < 2

    def _say_away(self, error: Exception) -> None:
        reason = _shown(" ".join(str(error).split()))
        logger.warning(
            "the tracker at %s is away (%.200s); training goes on and keeps its metrics in the run "
            "folder",
            _shown(self._target.uri),
            reason,
        )


class _Session:
    """The tracked run at a tracker that answered."""

    def __init__(self, client: MlflowClient, tracked_id: str) -> None:
        self._client = client
        self._id = tracked_id

    def deliver(self, batch: list[_MetricEntry | _Call]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(entry.name, entry.value, entry.at_ms, entry.step)
            for entry in batch
            if isinstance(entry, _MetricEntry)
        ]
        if metrics:
            self._client.log_batch(self._id, metrics=metrics)
        for entry in batch:
            if isinstance(entry, _Call):
                entry.act(self)

    def tag(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self._client.set_tag(self._id, name, value)

    def register(self, model: str, source: Location, tags: Mapping[str, str]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._client.create_model_version(
            model, source=source.uri, run_id=self._id, tags=dict(tags)
        )

    def attach(self, file: Path) -> None:
        self._client.log_artifact(self._id, str(file))

    def end(self, status: str) -> None:
        self._client.set_terminated(self._id, status)


def _open_session(target: TrackedRun, timing: TrackerTiming) -> _Session:
    """Connect, and find or start the tracked run."""
    client = _client(target.uri, timing)
    experiment = _experiment(client, target)
    tracked_id = _known_id(client, target, experiment)
    if tracked_id is None:
        tags = {RUN_TAG: target.run_id, "heliostat.folder": target.folder.uri}
        created = client.create_run(experiment, run_name=target.run_id, tags=tags)
        tracked_id = str(created.info.run_id)
        _log_parameters(client, tracked_id, target.parameters)
    else:
        client.update_run(tracked_id, status="RUNNING")
    note = {"uri": _shown(target.uri), "experiment": target.experiment, "tracked_run": tracked_id}
    (target.folder / TRACKER_NAME).write_text(pretty(note))
    return _Session(client, tracked_id)


def _client(uri: str, timing: TrackerTiming) -> MlflowClient:
    # Set before the import: MLflow 3.17 starts its usage telemetry while it is imported.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import environment_variables
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # By itself the client tries a request for four minutes; our own loop does that in the open.
    environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.set(timing.request_s)
    environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(0)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment(client: MlflowClient, target: TrackedRun) -> str:
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(target.experiment)
    if known is not None:
        return str(known.experiment_id)
    try:
        return str(client.create_experiment(target.experiment, artifact_location=target.artefacts))
    except MlflowException:
        known = client.get_experiment_by_name(target.experiment)
        if known is None:
            raise
        return str(known.experiment_id)  # another run made it at the same moment


def _known_id(client: MlflowClient, target: TrackedRun, experiment: str) -> str | None:
    """The id under which the tracker knows the run, from our note or by its tag."""
    from mlflow.exceptions import MlflowException

    note = target.folder / TRACKER_NAME
    if note.exists():
        tracked_id = str(json.loads(note.read_text())["tracked_run"])
        try:
            if client.get_run(tracked_id).info.lifecycle_stage == "active":
                return tracked_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    query = f"tags.`{RUN_TAG}` = '{target.run_id}' and tags.`heliostat.folder` = '{target.folder}'"
    found = client.search_runs([experiment], filter_string=query, max_results=1)
    return str(found[0].info.run_id) if found else None


def _log_parameters(client: MlflowClient, tracked_id: str, parameters: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    params = [
        Param(_UNUSUAL.sub("_", name), value[:_LONGEST_VALUE]) for name, value in parameters.items()
    ]
    for start in range(0, len(params), _PARAMS_BATCH):
        client.log_batch(tracked_id, params=params[start : start + _PARAMS_BATCH])


def _is_refusal(error: Exception) -> bool:
    """Whether the tracker answered that it will never take this; trying again would block it."""
    code = getattr(error, "error_code", None)
    return isinstance(error, HeliostatError) or code == "INVALID_PARAMETER_VALUE"


def _shown(text: str) -> str:
    """A URI, or a message with one in it, without the user and password that it may hold."""
    return re.sub(r"//[^/@\s]*@", "//", text)
