"""The model registry: which bundle is meant by a name, and which one is the champion.

A model is named like its job; every bundle that a run saves is a version of it. Nothing is taken on
trust: a bundle is verified before it is handed out, and one that is not what was registered, down
to the last byte, is refused. A bundle that is named by its place needs no registry.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from heliostat.config.nearest import nearest_names
from heliostat.config.output import DEFAULT_OUT, resolve_output
from heliostat.errors import BundleError, UserError
from heliostat.runs.bundle import Bundle, load_bundle, read_manifest
from heliostat.runs.manifest import Manifest
from heliostat.runs.mlflow_registry import (
    HOST_TAG,
    ModelRegistry,
    ModelVersion,
    has_database,
    open_registry,
)
from heliostat.runs.mlflow_session import TRACKER_NAME
from heliostat.runs.opening import read_identity
from heliostat.runs.provenance import (
    CLAIM_TAGS,
    latest_claim,
    provenance_of_tags,
    record_of,
    run_folder_of,
    tags_of_bundle,
)
from heliostat.runs.references import (
    CHAMPION,
    ModelReference,
    checked_alias,
    checked_model,
    parse_reference,
)
from heliostat.runs.tracker_address import tracker_address
from heliostat.storage import Location


@dataclass(frozen=True)
class Place:
    """Where the runs are, and with them their model registry."""

    out: Location
    tracker: str | None
    """The tracker's URI where it is not the one that `out` and the environment lead to."""

    def registry(self, *, make: bool = False) -> ModelRegistry:
        """Connect to the registry; `make` allows that there is none yet."""
        return open_registry(tracker_address(self.out, self.tracker), make=make)


@dataclass(frozen=True)
class Resolved:
    """A verified bundle, and the version it was named by."""

    bundle: Bundle
    version: ModelVersion | None
    """None for a bundle that was named by its place."""


@dataclass(frozen=True)
class Promotion:
    """An alias that was moved."""

    version: ModelVersion
    alias: str
    before: int | None
    """The version it pointed to."""
    after: int | None
    """The one it points to now: another one when somebody else moved it at the same moment."""


def resolve_bundle(
    reference: str, place: Place | None = None, *, kind: str | tuple[str, ...] | None = None
) -> Bundle:
    """The verified bundle behind a path, a URI, `JOB`, `JOB@ALIAS` or `JOB:NUMBER`.

    `place` is by default where `heliostat train` puts its runs. A `UserError` says what there is
    instead, a `BundleError` what was changed; a bundle that is not of `kind` is refused.
    """
    return resolve(reference, place or default_place(), kind=kind).bundle


def resolve(reference: str, place: Place, *, kind: str | tuple[str, ...] | None = None) -> Resolved:
    """As `resolve_bundle`, with the version of the model registry."""
    parsed = parse_reference(reference)
    if isinstance(parsed, Location):
        return Resolved(load_bundle(parsed, kind), None)
    version = find_version(place, place.registry(), parsed)
    return Resolved(open_version(version, kind), version)


def default_place() -> Place:
    """Where runs go when nothing else is said."""
    return Place(resolve_output(DEFAULT_OUT).place, None)


def list_versions(place: Place, model: str | None = None) -> list[ModelVersion]:
    """The versions of every model, or of one, the newest first."""
    if model is None and not has_database(tracker_address(place.out, place.tracker)):
        return []
    registry = place.registry()
    models = registry.models()
    if model is not None:
        _refuse_unknown(place, registry, model, models)
    chosen = models if model is None else [model]
    return [version for name in chosen for version in registry.versions(name, models[name])]


def find_version(place: Place, registry: ModelRegistry, wanted: ModelReference) -> ModelVersion:
    """The version that is meant; a UserError that says what there is when there is none."""
    models = registry.models()
    _refuse_unknown(place, registry, wanted.model, models)
    aliases = models[wanted.model]
    versions = registry.versions(wanted.model, aliases)
    numbers = [version.number for version in versions]
    number = wanted.number
    if number is None:
        alias = wanted.alias or CHAMPION
        if alias not in aliases:
            raise UserError(_without_alias(wanted, alias, aliases, numbers))
        number = aliases[alias]
    for version in versions:
        if version.number == number:
            return version
    there = f"it has {', '.join(map(str, sorted(numbers)))}" if numbers else "it has none"
    raise UserError(f"{wanted.model} has no version {number}; {there}")


def open_version(version: ModelVersion, kind: str | tuple[str, ...] | None = None) -> Bundle:
    """The verified bundle of a version, if it is still what was registered."""
    refuse_changed(version, manifest_of(version))
    return load_bundle(version.place, kind)


def manifest_of(version: ModelVersion) -> Manifest:
    """What the bundle of a version says of itself now."""
    try:
        return read_manifest(version.place)
    except BundleError as error:
        host = version.tags.get(HOST_TAG)
        where = f" (registered on {host})" if host else ""
        raise BundleError(f"{version}{where}: {error}") from error


def refuse_changed(version: ModelVersion, manifest: Manifest) -> None:
    """Raise a `BundleError` when a bundle is not the one that was registered."""
    if version.digest is None:
        raise BundleError(
            f"{version} was not registered by Heliostat: it has no digest to check "
            f"{version.place} against; register it by `heliostat models register {version.place}`"
        )
    if not manifest.digest.startswith(version.digest):
        raise BundleError(
            f"{version} was changed after it was registered: {version.place} is now version "
            f"{manifest.version}, not {version.digest[:12]}"
        )


def promote(place: Place, reference: str, alias: str) -> Promotion:
    """Verify a registered bundle and let an alias point to it."""
    checked_alias(alias)
    parsed = parse_reference(reference)
    registry = place.registry()
    if isinstance(parsed, Location):
        version = _registered(registry, parsed)
    else:
        version = find_version(place, registry, parsed)
    open_version(version)
    _complete_tags(place, registry, version)
    before = registry.alias(version.model, alias)
    registry.set_alias(version.model, alias, version.number)
    return Promotion(version, alias, before, registry.alias(version.model, alias))


def demote(place: Place, reference: str) -> ModelVersion:
    """Take an alias away, given as `JOB@ALIAS`; returns the version it pointed to."""
    parsed = parse_reference(reference)
    if isinstance(parsed, Location) or parsed.alias is None:
        raise UserError(f"{reference!r}: say which alias is taken away, as in JOB@{CHAMPION}")
    registry = place.registry()
    version = find_version(place, registry, parsed)
    registry.remove_alias(parsed.model, parsed.alias)
    return version


def register_bundle(place: Place, bundle: str, model: str | None) -> tuple[ModelVersion, bool]:
    """Verify a bundle and make it a version; returns it, and whether it is new.

    Its model is named by the run that made it, by the `job` in its metadata, or by `model`.
    """
    location = Location.of(bundle)
    loaded = load_bundle(location)
    run = loaded.metadata.get("run")
    folder = run_folder_of(location, None if run is None else str(run), place.out)
    noted = loaded.metadata.get("job")
    if folder is not None:
        noted = read_identity(folder).job
    if model is None and noted is None:
        raise UserError(f"{location} does not say of which job it is; give --job NAME")
    name = checked_model(model or str(noted))
    tags = tags_of_bundle(location, record_of(folder), claim=None)
    registry = place.registry(make=True)
    tracked_run = _tracked_run(folder, registry)
    number, is_new = registry.add(name, location, tags, tracked_run)
    version = find_version(place, registry, ModelReference(name, None, number))
    _complete_tags(place, registry, version)
    return version, is_new


def registered_as(place: Place, bundle: Location, manifest: Manifest) -> list[ModelVersion]:
    """The versions that are this very bundle; none when there is no registry."""
    return [
        version
        for version in list_versions(place)
        if version.place == bundle and manifest.digest.startswith(version.digest or "-")
    ]


def _complete_tags(place: Place, registry: ModelRegistry, version: ModelVersion) -> None:
    """Note down the newest claim, and what an older Heliostat did not when it registered this."""
    folder = run_folder_of(version.place, provenance_of_tags(version.tags).run, place.out)
    tags = tags_of_bundle(version.place, record_of(folder), latest_claim(place.out, version.model))
    newer = {
        name: value
        for name, value in tags.items()
        if name not in version.tags or (name in CLAIM_TAGS and value != version.tags[name])
    }
    registry.tag(version, newer)


def _registered(registry: ModelRegistry, bundle: Location) -> ModelVersion:
    manifest = read_manifest(bundle)
    for model, aliases in registry.models().items():
        for version in registry.versions(model, aliases):
            if version.place == bundle and manifest.digest.startswith(version.digest or "-"):
                return version
    raise UserError(
        f"{bundle} is not registered; do it by `heliostat models register {bundle}`, then promote"
    )


def _refuse_unknown(
    place: Place, registry: ModelRegistry, model: str, models: dict[str, dict[str, int]]
) -> None:
    if model in models:
        return
    near = nearest_names(model, models)
    if near:
        hint = f"did you mean {near[0]}?"
    elif models:
        hint = f"there are {', '.join(models)}"
    else:
        hint = "there are none yet"
    others = _other_trackers(place, registry)
    if others and not near:
        hint += (
            f"; runs in {place.out} were tracked at {others[0]}, give --tracker URI to look there"
        )
    raise UserError(f"no model in {registry.address} is named {model!r}; {hint}")


def _other_trackers(place: Place, registry: ModelRegistry) -> Sequence[str]:
    """Trackers that runs in the folder noted down, besides the one that was asked."""
    if not place.out.is_local or not place.out.exists():
        return []
    notes = [folder / TRACKER_NAME for folder in place.out.list()]
    uris = {str(json.loads(note.read_text())["uri"]) for note in notes if note.exists()}
    return sorted(uris - {str(registry.address)})


def _without_alias(
    wanted: ModelReference, alias: str, aliases: dict[str, int], numbers: list[int]
) -> str:
    near = get_close_matches(alias, aliases, n=1)
    if near:
        return f"{wanted.model} has no alias {alias!r}; did you mean {wanted.model}@{near[0]}?"
    has = f"it has the aliases {', '.join(sorted(aliases))}; " if aliases else ""
    option = "" if alias == CHAMPION else f" --alias {alias}"
    what = "no champion" if alias == CHAMPION else f"no alias {alias!r}"
    newest = max(numbers, default=None)
    if newest is None:
        return f"{wanted.model} has {what} and no version that could become one"
    return (
        f"{wanted.model} has {what}; {has}promote a version by `heliostat models promote "
        f"{wanted.model}:{newest}{option}`"
    )


def _tracked_run(folder: Location | None, registry: ModelRegistry) -> str | None:
    """The tracked run of a run folder, if it is tracked where the registry is."""
    if folder is None or not (folder / TRACKER_NAME).exists():
        return None
    note = json.loads((folder / TRACKER_NAME).read_text())
    return str(note["tracked_run"]) if note["uri"] == str(registry.address) else None
