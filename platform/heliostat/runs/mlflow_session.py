"""A session with MLflow: one tracked run at a tracker that answered.

MLflow is imported inside functions, in the tracker's thread, since the import takes seconds.
Everything here may block and may raise.

A run that goes on is the same tracked run: its MLflow id is kept in `tracker.json` in the run
folder and, should a process die before that is written, found again by a tag.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heliostat.runs.canonical import pretty
from heliostat.runs.mlflow_client import connect
from heliostat.runs.mlflow_registry import add_version
from heliostat.runs.tracker_address import without_credentials
from heliostat.storage import Location

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TRACKER_NAME = "tracker.json"
RUN_TAG = "heliostat.run"
FOLDER_TAG = "heliostat.folder"
_UNUSUAL = re.compile(r"[^\w\-. :/]")
_LONGEST_NAME = 250
_LONGEST_VALUE = 6000
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
class MetricPoint:
    """One value of one metric."""

    name: str
    value: float
    step: int
    at_ms: int
    """Milliseconds since 1970."""


class Session:
    """The tracked run; `open_session` makes one."""

    def __init__(self, client: MlflowClient, tracked_id: str) -> None:
        self._client = client
        self._id = tracked_id

    def log(self, points: Sequence[MetricPoint]) -> None:
        """Log up to 1000 values in one request."""
        from mlflow.entities import Metric

        metrics = [
            Metric(_allowed(point.name), point.value, point.at_ms, point.step) for point in points
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for name, value in tags.items():
            self._client.set_tag(self._id, name, value)

    def register(self, model: str, source: Location, tags: Mapping[str, str]) -> None:
        """Add a version of a model to the registry."""
        add_version(self._client, model, source, tags, tracked_run=self._id)

    def attach(self, file: Path) -> None:
        """Copy a file to the tracked run's artefacts."""
        self._client.log_artifact(self._id, str(file))

    def end(self, status: str) -> None:
        """End the tracked run with a status of MLflow's."""
        self._client.set_terminated(self._id, status)


def open_session(target: TrackedRun, request_s: int) -> Session:
    """Connect, and find or start the tracked run."""
    client = connect(target.uri, request_s)
    experiment = _experiment(client, target)
    tracked_id = _known_id(client, target, experiment)
    if tracked_id is None:
        tags = {RUN_TAG: target.run_id, FOLDER_TAG: target.folder.uri}
        created = client.create_run(experiment, run_name=target.run_id, tags=tags)
        tracked_id = str(created.info.run_id)
        _log_parameters(client, tracked_id, target.parameters)
    else:
        client.update_run(tracked_id, status="RUNNING")
    note = {
        "uri": without_credentials(target.uri),
        "experiment": target.experiment,
        "tracked_run": tracked_id,
    }
    (target.folder / TRACKER_NAME).write_text(pretty(note))
    return Session(client, tracked_id)


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
    query = f"tags.`{RUN_TAG}` = '{target.run_id}' and tags.`{FOLDER_TAG}` = '{target.folder}'"
    found = client.search_runs([experiment], filter_string=query, max_results=1)
    return str(found[0].info.run_id) if found else None


def _log_parameters(client: MlflowClient, tracked_id: str, parameters: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    params = [Param(_allowed(name), value[:_LONGEST_VALUE]) for name, value in parameters.items()]
    for start in range(0, len(params), _PARAMS_BATCH):
        client.log_batch(tracked_id, params=params[start : start + _PARAMS_BATCH])


def refuses(error: Exception) -> bool:
    """Whether the tracker answered that it will never take this, so that a retry is in vain."""
    return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"


def _allowed(name: str) -> str:
    """The name with what MLflow does not allow in one replaced."""
    return _UNUSUAL.sub("_", name)[:_LONGEST_NAME]
