"""The way to MLflow: a quiet client with short patience, and a database that is never half made.

MLflow is imported inside functions, since the import takes seconds. Everything here may block and
may raise whatever MLflow raises.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from heliostat.config.settings import settings
from heliostat.runs.tracker_address import SQLITE

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def connect(uri: str, request_s: int) -> MlflowClient:
    """A client of a server or database; an SQLite database that is not there yet is made."""
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
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        _make_database(Path(uri.removeprefix(SQLITE)))
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
            MlflowClient(tracking_uri=f"{SQLITE}{made}").search_experiments()
            _copy_unless_there(made, empty)
    _copy_unless_there(empty, file)


def _copy_unless_there(source: Path, target: Path) -> None:
    """Copy a file in one step; a target that is there, perhaps since a moment ago, is kept."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        copy = shutil.copyfile(source, Path(scratch) / "copy")
        with suppress(FileExistsError):
            os.link(copy, target)
