"""An endpoint on this machine, and what an endpoint anywhere says of its versions."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from heliostat.cluster.ray_cluster import connect
from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.config.output import resolve_output
from heliostat.errors import Fault, UserError
from heliostat.runs.bundle import load_bundle
from heliostat.runs.listing import list_runs
from heliostat.runs.manifest import MANIFEST_NAME
from heliostat.runs.references import CHAMPION
from heliostat.runs.registry import Place, list_versions, resolve
from heliostat.serve.config import OFF, serve_config
from heliostat.serve.deployment import DEPLOYMENT, address_of, check, deploy, describe
from heliostat.serve.keys import add_key
from heliostat.serve.lineup import Lineup
from heliostat.storage import Location

LINEUP_WAIT_S = 120.0


@dataclass(frozen=True)
class Running:
    """An endpoint that answers."""

    url: str
    dashboard: str
    """Where `heliostat serve deploy` changes it."""
    keys: str
    first_key: str | None
    """The key that was made for it, when there was no key file yet."""


@contextmanager
def serving(job: str, overrides: Sequence[str], lineup: Lineup) -> Iterator[Running]:
    """An endpoint on a cluster of our own, for the length of the block."""
    config = serve_config(load_config(find_job(job), None, list(overrides), []).config)
    fresh = _first_key(config.keys)
    description = describe(job, overrides, lineup)
    check(description, "this endpoint")
    if config.http.haproxy:
        # Read when Ray's processes start.
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    connection = connect("local", dashboard=True)
    try:
        assert connection.dashboard_url is not None
        deploy(description, connection.dashboard_url)
        yield Running(address_of(description), connection.dashboard_url, config.keys, fresh)
    finally:
        connection.close()


def _first_key(keys: str) -> str | None:
    """Make the key file with a first key where there is none; returns that key."""
    if keys == OFF or Location.of(keys).exists():
        return None
    return add_key(Location.of(keys), "first")


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
        return _for_cluster(resolve(reference, self.place, kind=self.job).bundle.source)

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


def is_local(url: str) -> bool:
    """Whether a URL leads to this machine."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def wait_for_lineup(description: Mapping[str, Any], url: str) -> list[str]:
    """Wait until the endpoint answers with the versions of the description; says what it has.

    Raises `Fault` when it refused them and goes on with those before.
    """
    wanted = description["applications"][0]["deployments"][0]
    assert wanted["name"] == DEPLOYMENT
    shares = {
        load_bundle(one["bundle"]).version: one.get("percent", 100.0)
        for one in wanted["user_config"]["versions"]
    }
    copied = wanted["user_config"].get("shadow")
    shadow = None if copied is None else load_bundle(copied).version
    until = time.monotonic() + LINEUP_WAIT_S
    while True:
        health = _health(url)
        answering = {one["version"]: one["percent"] for one in health["versions"]}
        if answering == shares and health["shadow"] == shadow:
            return _lines(health)
        if health["refused_lineup"]:
            raise Fault(
                "the new versions could not be loaded; those before go on answering. The reason is "
                "in the log of the replica and in GET .../model"
            )
        if time.monotonic() > until:
            raise Fault(f"{url} did not take the new versions within {LINEUP_WAIT_S:g} s")
        time.sleep(0.25)


def lineup_lines(url: str) -> list[str]:
    """The versions of a running endpoint, a line each."""
    return _lines(_health(url))


def _lines(health: Mapping[str, Any]) -> list[str]:
    lines = [f"{one['percent']:g} %  version {one['version']}" for one in health["versions"]]
    if health["shadow"]:
        lines.append(f"shadow  version {health['shadow']}")
    return lines


def _health(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/healthz", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except (urllib.error.URLError, ValueError) as error:
        raise UserError(f"no endpoint answers at {url}: {error}") from None
