"""MLflow's model registry: models, their versions and aliases, as plain rows.

Every failure of MLflow comes out as one sentence without credentials. An alias is moved by one
transaction of MLflow's, so it points to the version before or to the one after and never nowhere,
whoever else moves it and whenever this process is killed.

A server of MLflow's refuses a local path as the source of a version (it would be a path of the
server's machine). There the source is `heliostat://HOST/path`, and where the bundle lies is said by
a tag in any case.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliostat.errors import HeliostatError, UserError
from heliostat.runs import clock
from heliostat.runs.mlflow_client import connect
from heliostat.runs.tracker_address import SQLITE, TrackerAddress, without_credentials
from heliostat.storage import Location

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PLACE_TAG = "heliostat.bundle"
HOST_TAG = "heliostat.host"
DIGEST_TAG = "heliostat.bundle_digest"
VERSION_TAG = "version"
_REQUEST_S = 10
_PAGE = 1000
_TRIES = 5
_FINAL = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model: a bundle that was registered."""

    model: str
    number: int
    aliases: tuple[str, ...]
    made: str
    """When it was registered."""
    source: str
    tracked_run: str | None
    """The id of the tracked run it came from."""
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.model}:{self.number}"

    @property
    def place(self) -> Location:
        """Where the bundle lies."""
        return Location.of(self.tags.get(PLACE_TAG, self.source))

    @property
    def digest(self) -> str | None:
        """The digest of the bundle, or the first digits of it; None if it was not noted down."""
        return self.tags.get(DIGEST_TAG) or self.tags.get(VERSION_TAG)


class ModelRegistry:
    """An open model registry; `open_registry` makes one."""

    def __init__(self, client: MlflowClient, address: TrackerAddress) -> None:
        self._client = client
        self.address = address

    def models(self) -> dict[str, dict[str, int]]:
        """The models by name, each with its aliases and the versions they point to."""
        with explained(self.address):
            found = _all_pages(self._client.search_registered_models, filter_string=None)
            return {
                str(model.name): {name: int(number) for name, number in model.aliases.items()}
                for model in sorted(found, key=lambda model: str(model.name))
            }

    def versions(self, model: str, aliases: Mapping[str, int]) -> list[ModelVersion]:
        """The versions of a model, the newest first; `aliases` are those that `models` told."""
        with explained(self.address):
            return model_versions(self._client, model, aliases)

    def alias(self, model: str, alias: str) -> int | None:
        """The version that an alias points to; None when the model has no such alias."""
        with explained(self.address):
            aliases = self._client.get_registered_model(model).aliases
            return int(aliases[alias]) if alias in aliases else None

    def set_alias(self, model: str, alias: str, number: int) -> None:
        """Let an alias point to a version, in one step."""
        with explained(self.address):
            _insist(lambda: self._client.set_registered_model_alias(model, alias, str(number)))

    def remove_alias(self, model: str, alias: str) -> None:
        """Take an alias away."""
        with explained(self.address):
            _insist(lambda: self._client.delete_registered_model_alias(model, alias))

    def tag(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with explained(self.address):
            for name, value in tags.items():
                self._client.set_model_version_tag(version.model, str(version.number), name, value)

    def add(
        self, model: str, bundle: Location, tags: Mapping[str, str], tracked_run: str | None
    ) -> tuple[int, bool]:
        """Register a bundle as `add_version` does."""
        with explained(self.address):
            return add_version(self._client, model, bundle, tags, tracked_run=tracked_run)

    def parameters(self, tracked_run: str) -> dict[str, str]:
        """The config keys that a tracked run was started with."""
        with explained(self.address):
            return dict(self._client.get_run(tracked_run).data.params)


def open_registry(address: TrackerAddress, *, make: bool = False) -> ModelRegistry:
    """Connect; a UserError when there is no database yet, which `make` allows."""
    if not make and not has_database(address):
        raise UserError(
            f"no model is registered yet: there is no {address.uri.removeprefix(SQLITE)} "
            "(give --out or --tracker if the runs are elsewhere)"
        )
    with explained(address):
        return ModelRegistry(connect(address.uri, _REQUEST_S), address)


def has_database(address: TrackerAddress) -> bool:
    """Whether a database in a file is there; of a server it is taken for granted."""
    uri = address.uri
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).exists()


def add_version(
    client: MlflowClient,
    model: str,
    bundle: Location,
    tags: Mapping[str, str],
    *,
    tracked_run: str | None,
) -> tuple[int, bool]:
    """Register a bundle; returns the version's number and whether it is new.

    The same content at the same place is registered once: a run that goes on, or a delivery that
    is tried again, must not count up.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for known in model_versions(client, model, {}):
        if _is_of(known, bundle, tags):
            return known.number, False
    host = {HOST_TAG: platform.node()} if bundle.is_local else {}
    is_for_server = bundle.is_local and client.tracking_uri.startswith("http")
    made = client.create_model_version(
        model,
        source=f"heliostat://{platform.node()}{bundle}" if is_for_server else bundle.uri,
        run_id=tracked_run,
        tags={PLACE_TAG: bundle.uri, **host, **tags},
    )
    return int(made.version), True


def model_versions(
    client: MlflowClient, model: str, aliases: Mapping[str, int]
) -> list[ModelVersion]:
    """The versions of a model, the newest first."""
    query = f"name = '{model}'"
    found = [
        ModelVersion(
            model=str(item.name),
            number=int(item.version),
            aliases=tuple(
                sorted(name for name, number in aliases.items() if number == int(item.version))
            ),
            made=clock.at(item.creation_timestamp / 1000),
            source=str(item.source),
            tracked_run=item.run_id or None,
            tags=dict(item.tags),
        )
        for item in _all_pages(client.search_model_versions, filter_string=query)
    ]
    return sorted(found, key=lambda version: version.number, reverse=True)


@contextmanager
def explained(address: TrackerAddress) -> Iterator[None]:
    """Turn whatever MLflow raises into one sentence that holds no credentials."""
    try:
        yield
    except HeliostatError:
        raise
    # MLflow lets errors of requests, SQLAlchemy and database drivers through as they are. The
    # chain is cut, since they quote the address with its password.
    except Exception as error:
        reason = without_credentials(" ".join(str(error).split()))[:300]
        raise UserError(
            f"the model registry at {address} failed: {reason or type(error).__name__}"
        ) from None


def _is_of(version: ModelVersion, bundle: Location, tags: Mapping[str, str]) -> bool:
    same_place = version.tags.get(PLACE_TAG, version.source) == bundle.uri
    return same_place and version.tags.get(VERSION_TAG) == tags[VERSION_TAG]


def _all_pages(search: Any, **arguments: Any) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(max_results=_PAGE, page_token=token, **arguments)
        found += page
        token = page.token
        if not token:
            return found


def _insist(action: Any) -> None:
    """Do it again when another writer was in the way; doing it twice is doing it once."""
    from mlflow.exceptions import MlflowException

    for left in reversed(range(_TRIES)):
        try:
            action()
        except MlflowException as error:
            if left == 0 or error.error_code in _FINAL:
                raise
        else:
            return
