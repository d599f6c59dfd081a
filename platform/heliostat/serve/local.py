"""An endpoint on this machine, and the bundles that a user names for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from heliostat.cluster.ray_cluster import connect
from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.config.output import resolve_output
from heliostat.config.settings import (
    MOST_IN_FLIGHT_VARIABLE,
    TLS_CERTIFICATE_VARIABLE,
    TLS_KEY_VARIABLE,
)
from heliostat.errors import UserError
from heliostat.runs.listing import list_runs
from heliostat.runs.manifest import MANIFEST_NAME
from heliostat.runs.references import CHAMPION
from heliostat.runs.registry import Place, list_versions, resolve
from heliostat.serve import haproxy
from heliostat.serve.config import OFF, HttpConfig, ServeConfig, serve_config
from heliostat.serve.deployment import address_of, check, describe, most_in_flight
from heliostat.serve.health import Address
from heliostat.serve.keys import add_key
from heliostat.serve.lineup import Lineup
from heliostat.serve.rollout import deploy
from heliostat.storage import Location


@dataclass(frozen=True)
class Running:
    """An endpoint that answers."""

    address: Address
    versions: tuple[str, ...]
    """The versions that answer, a line each."""
    dashboard: str
    """Where `heliostat serve deploy` changes it."""


@contextmanager
def serving(job: str, overrides: Sequence[str], lineup: Lineup) -> Iterator[Running]:
    """An endpoint on a cluster of our own, for the length of the block."""
    config = serve_config(load_config(find_job(job), None, list(overrides), []).config)
    _check_port(config.http)
    description = describe(job, overrides, lineup)
    check(description, "this endpoint")
    # All are read when Ray's processes start. Ray runs its workers at niceness 15; a replica that
    # somebody waits for must not yield to whatever else this machine does. Nothing of ours blocks
    # the event loop, so one loop for Serve and us does, and a request changes threads twice less;
    # log lines are still written one by one.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
    os.environ.setdefault("RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE", "1")
    if config.http.haproxy:
        _use_haproxy(config)
    connection = connect("local", dashboard=True)
    try:
        assert connection.dashboard_url is not None
        address = address_of(description)
        versions = deploy(description, connection.dashboard_url, address)
        yield Running(address, tuple(versions), connection.dashboard_url)
    finally:
        connection.close()


def _use_haproxy(config: ServeConfig) -> None:
    """Let Serve start HAProxy, if it is installed, with ports for its own pages that are free."""
    program = haproxy.program()
    if program is None:
        return
    stats, metrics = _free_ports(2)
    os.environ.update(
        {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            haproxy.BINARY_VARIABLE: str(program),
            haproxy.RETRY_VARIABLE: haproxy.RETRY_ON,
            MOST_IN_FLIGHT_VARIABLE: str(most_in_flight(config)),
        }
    )
    key, certificate = config.http.tls_key, config.http.tls_certificate
    if key is not None and certificate is not None:
        os.environ[TLS_KEY_VARIABLE] = str(Path(key).resolve())
        os.environ[TLS_CERTIFICATE_VARIABLE] = str(Path(certificate).resolve())


def _free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _check_port(http: HttpConfig) -> None:
    """Refuse a port that is taken: Ray would wait for it, or share it with whoever has it."""
    with socket.socket() as probe:
        # As servers do: a port that was in use a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http.host, http.port))
        except OSError as error:
            raise UserError(
                f"the endpoint cannot listen at {http.host}:{http.port}: {error.strerror}; choose "
                f"another port, such as serve.http.port={_free_ports(1)[0]}"
            ) from None


def first_key(job: str, overrides: Sequence[str]) -> tuple[str, str] | None:
    """Make the key file of an endpoint, with a key in it, where there is none.

    Returns:
        The key, which is kept nowhere, and the file with its hash; None where nothing was made.
    """
    keys = serve_config(load_config(find_job(job), None, list(overrides), []).config).keys
    if keys == OFF or Location.of(keys).exists():
        return None
    return add_key(Location.of(keys), "first"), keys


@dataclass(frozen=True)
class Bundles:
    """Finds the bundles that a user names for a job."""

    job: str
    place: Place

    def find(self, reference: str) -> str:
        """The path or URI of a bundle, as a cluster finds it.

        Args:
            reference: a path, a URI, `JOB@ALIAS`, `JOB:NUMBER`, or an alias of the job alone.
        """
        is_bare = not any(sign in reference for sign in "/@:")
        if is_bare and not Path(reference).is_dir():
            reference = f"{self.job}@{reference}"
        return _for_cluster(
            resolve(reference, self.place, kind=find_job(self.job).served_kinds()).bundle.source
        )

    def default(self) -> str:
        """The job's champion, else the bundle of its newest run that has one."""
        versions = [] if self.job not in self._models() else list_versions(self.place, self.job)
        if any(CHAMPION in version.aliases for version in versions):
            return self.find(CHAMPION)
        for row in list_runs(self.place.out, self.job):
            folder = row.folder / "bundle"
            if (folder / MANIFEST_NAME).exists():
                return _for_cluster(folder)
        raise UserError(
            f"no run of {self.job} in {self.place.out.uri} has a bundle; train one (heliostat "
            f"train {self.job}) or name one"
        )

    def _models(self) -> set[str]:
        return {version.model for version in list_versions(self.place)}


def bundles_of(job: str, overrides: Sequence[str]) -> Bundles:
    """Where the bundles of a job with such a config are."""
    config = load_config(find_job(job), None, list(overrides), []).config
    return Bundles(job, Place(resolve_output(config.out).place, config.tracker.uri))


def _for_cluster(folder: Location) -> str:
    return str(folder.local_path.resolve()) if folder.is_local else folder.uri
