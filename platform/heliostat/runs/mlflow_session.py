"""A session with MLflow: one tracked run at a tracker that answered.

The only module that calls MLflow, and the only place where it is imported: inside functions, in the
tracker's thread, since the import takes seconds. Everything here may block and may raise.

A run that goes on is the same tracked run: its MLflow id is kept in `tracker.json` in the run
folder and, should a process die before that is written, found again by a tag.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from heliostat.config.settings import settings
from heliostat.runs.canonical import pretty
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
_SQLITE = "sqlite:///"


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
        """Copy a file to the tracked run's artefacts."""
        self._client.log_artifact(self._id, str(file))

    def end(self, status: str) -> None:
        """End the tracked run with a status of MLflow's."""
        self._client.set_terminated(self._id, status)


def open_session(target: TrackedRun, request_s: int) -> Session:
    """Connect, and find or start the tracked run."""
    client = _client(target.uri, request_s)
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


def _client(uri: str, request_s: int) -> MlflowClient:
    # Set before the import: MLflow 3.17 starts its usage telemetry while it is imported.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import environment_variables
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # By itself the client tries a request for four minutes; our own loop does that in the open.
    environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.set(request_s)
    environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(0)
    if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).exists():
        _make_database(Path(uri.removeprefix(_SQLITE)))
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _make_database(file: Path) -> None:
    """Put an SQLite database with MLflow's empty tables in place, complete from the first moment.

    MLflow 3.17 makes the tables in place, one by one, without a lock: two runs that start together
    would leave a half-made database that no later run can use, and so would a kill. It also takes
    seconds, so an empty one is kept in the cache.
    """
    import mlflow
    from mlflow.tracking import MlflowClient

    empty = settings().home / "cache" / f"mlflow-{mlflow.__version__}.db"
    if not empty.exists():
        empty.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mlflow.", dir=empty.parent) as scratch:
            made = Path(scratch) / "made.db"
            MlflowClient(tracking_uri=f"{_SQLITE}{made}").search_experiments()
            _copy_unless_there(made, empty)
    _copy_unless_there(empty, file)


def _copy_unless_there(source: Path, target: Path) -> None:
    """Copy a file in one step; a target that is there, perhaps since a moment ago, is kept."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        copy = shutil.copyfile(source, Path(scratch) / "copy")
        with suppress(FileExistsError):
            os.link(copy, target)


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


def without_credentials(text: str) -> str:
    """A URI, or a message with one in it, without the user and password that it may hold."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _allowed(name: str) -> str:
    """The name with what MLflow does not allow in one replaced."""
    return _UNUSUAL.sub("_", name)[:_LONGEST_NAME]
