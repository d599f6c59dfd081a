"""What the surroundings say: the one module that reads environment variables.

Everything that decides a result is in the config; what is here only says where caches and runs
live, which cluster and tracker to talk to, and how to print. `settings()` reads afresh on every
call, so a value never outlives the environment it came from.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

JOB_DRIVER_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray's job supervisor in the driver it starts (`ray job submit`), and only there."""
MOST_IN_FLIGHT_VARIABLE = "HELIOSTAT_MOST_IN_FLIGHT"
TLS_CERTIFICATE_VARIABLE = "HELIOSTAT_TLS_CERTIFICATE"
TLS_KEY_VARIABLE = "HELIOSTAT_TLS_KEY"

WORKING_DIR_PARENT = "working_dir_files"
"""The folder in which Ray unpacks a submitted working directory (`runtime_env/working_dir.py`)."""


@dataclass(frozen=True)
class Settings:
    """The environment, read once."""

    home: Path
    """Caches and logs (HELIOSTAT_HOME, else XDG_CACHE_HOME/heliostat, else ~/.cache/heliostat)."""
    submitted_home: Path
    """Where relative outputs of a submitted job go (HELIOSTAT_HOME, else ~/heliostat)."""
    runs: str | None
    """Folder or URI under which a relative `out` is put (HELIOSTAT_RUNS); None: the caller's."""
    tracking_uri: str | None
    """The tracker's server (MLFLOW_TRACKING_URI); None: the embedded one."""
    shared_storage: Path | None
    """A folder that every node mounts although its file system does not tell
    (HELIOSTAT_SHARED_STORAGE); None: file systems are judged by their type."""
    most_in_flight: str | None
    """Requests that HAProxy lets a replica have in flight (HELIOSTAT_MOST_IN_FLIGHT); None: all."""
    tls_certificate: Path | None
    """PEM file of the chain with which HAProxy speaks HTTPS (HELIOSTAT_TLS_CERTIFICATE)."""
    tls_key: Path | None
    """PEM file of its private key (HELIOSTAT_TLS_KEY)."""
    ray_address: str | None
    """The cluster to connect to (RAY_ADDRESS); None: one of our own on this machine."""
    is_submitted: bool
    """Whether this is the driver of a `ray job submit`."""
    is_in_package: bool
    """Whether the current folder is Ray's unpacked copy of a working directory: it will vanish."""
    is_terminal: bool
    """Whether standard output is a terminal."""
    is_ci: bool
    """Whether a continuous-integration system runs us (CI)."""


def settings() -> Settings:
    """The settings as the environment gives them now."""
    home = _path("HELIOSTAT_HOME")
    cache = _path("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Settings(
        home=home or cache / "heliostat",
        submitted_home=home or Path.home() / "heliostat",
        runs=_text("HELIOSTAT_RUNS"),
        tracking_uri=_text("MLFLOW_TRACKING_URI"),
        shared_storage=_path("HELIOSTAT_SHARED_STORAGE"),
        most_in_flight=_text(MOST_IN_FLIGHT_VARIABLE),
        tls_certificate=_path(TLS_CERTIFICATE_VARIABLE),
        tls_key=_path(TLS_KEY_VARIABLE),
        ray_address=_text("RAY_ADDRESS"),
        is_submitted=_text(JOB_DRIVER_VARIABLE) is not None,
        is_in_package=WORKING_DIR_PARENT in Path.cwd().parts,
        is_terminal=sys.stdout.isatty(),
        is_ci=(_text("CI") or "false").lower() not in ("0", "false", "no"),
    )


def put_on_path(folder: Path) -> None:
    """Make `folder` importable first, here and in the Ray processes that we start.

    A console script has its own folder on the path, not the current one, while Ray workers do get
    the driver's current folder: without this the driver would fail where a worker would not.
    """
    entry = str(folder.resolve())
    if entry in sys.path:
        sys.path.remove(entry)
    sys.path.insert(0, entry)
    known = [part for part in (_text("PYTHONPATH") or "").split(os.pathsep) if part]
    if entry not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join([entry, *known])


def _text(name: str) -> str | None:
    """A variable's value; None when it is unset or empty."""
    return os.environ.get(name) or None


def _path(name: str) -> Path | None:
    value = _text(name)
    return Path(value).expanduser().absolute() if value else None
