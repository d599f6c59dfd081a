"""Where the tracker is: decided here alone, for a run and for the model registry alike."""

from __future__ import annotations

import re
from dataclasses import dataclass

from heliostat.config.settings import settings
from heliostat.storage import Location

SQLITE = "sqlite:///"
_SECRET_FIELDS = "password|passwd|pwd|token|secret|sslpassword"


@dataclass(frozen=True)
class TrackerAddress:
    """A server or a database, and where an embedded one keeps artefacts."""

    uri: str
    """`http://HOST:PORT`, or a database (`sqlite:////path/mlflow.db`); may hold a password."""
    artefacts: str | None
    """Where artefacts of a new experiment go; None leaves it to the server."""

    def __str__(self) -> str:
        return without_credentials(self.uri)


def tracker_address(out: Location, configured: str | None) -> TrackerAddress:
    """The tracker of the runs in `out`: as configured, else MLFLOW_TRACKING_URI, else beside them.

    Runs on an object store have their embedded database in the home, since SQLite needs a disk.
    """
    base = out if out.is_local else Location.of(settings().home)
    embedded = f"{SQLITE}{base.uri}/mlflow.db"
    uri = configured or settings().tracking_uri or embedded
    return TrackerAddress(uri, (base / "mlflow").uri if uri == embedded else None)


def without_credentials(text: str) -> str:
    """A URI, or a message with one in it, without the user and password that it may hold."""
    text = re.sub(r"//[^/\s]*@", "//", text)
    return re.sub(rf"(?i)([?&](?:{_SECRET_FIELDS})=)[^&\s]*", r"\1...", text)
