"""Everything known of one model, for showing it and for comparing it; its files are not verified.

Config keys come from the folder of the run, or, when that is gone, from the tracked run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from heliostat.errors import BundleError, UserError
from heliostat.runs.bundle import read_manifest
from heliostat.runs.differences import flatten_config
from heliostat.runs.manifest import Manifest
from heliostat.runs.mlflow_registry import ModelRegistry, ModelVersion
from heliostat.runs.opening import CONFIG_NAME, read_identity
from heliostat.runs.provenance import (
    Provenance,
    provenance_of_bundle,
    provenance_of_tags,
    record_of,
    run_folder_of,
    with_newest_claim,
)
from heliostat.runs.references import parse_reference
from heliostat.runs.registry import Place, find_version, manifest_of, refuse_changed, registered_as
from heliostat.storage import Location


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a bundle, registered or not."""

    name: str
    """As it was asked for; the version where there is one."""
    bundle: Location
    manifest: Manifest | None
    """None when there is no readable bundle any more."""
    trouble: str | None
    """Why the bundle cannot be used; None when nothing speaks against it."""
    versions: tuple[ModelVersion, ...]
    """The versions it is registered as."""
    provenance: Provenance
    config: Mapping[str, str] | None
    """Config keys of its run; None when they are not known any more."""


def model_facts(place: Place, reference: str) -> ModelFacts:
    """What is known of the bundle behind a reference."""
    parsed = parse_reference(reference)
    if isinstance(parsed, Location):
        return _facts_of_bundle(place, parsed)
    registry = place.registry()
    return _facts_of_version(place, registry, find_version(place, registry, parsed))


def _facts_of_bundle(place: Place, bundle: Location) -> ModelFacts:
    manifest = read_manifest(bundle)
    run = manifest.metadata.get("run")
    folder = run_folder_of(bundle, None if run is None else str(run), place.out)
    versions = tuple(registered_as(place, bundle, manifest))
    provenance = (
        provenance_of_tags(versions[0].tags)
        if versions
        else provenance_of_bundle(bundle, manifest, record_of(folder))
    )
    if folder is not None:
        provenance = with_newest_claim(provenance, place.out, read_identity(folder).job)
    return ModelFacts(
        name=str(versions[0]) if versions else bundle.uri,
        bundle=bundle,
        manifest=manifest,
        trouble=None,
        versions=versions,
        provenance=provenance,
        config=_config_of(folder),
    )


def _facts_of_version(place: Place, registry: ModelRegistry, version: ModelVersion) -> ModelFacts:
    provenance = provenance_of_tags(version.tags)
    manifest, trouble = None, None
    try:
        manifest = manifest_of(version)
        refuse_changed(version, manifest)
    except BundleError as error:
        trouble = str(error)
    folder = run_folder_of(version.place, provenance.run, place.out)
    if manifest is not None and trouble is None:
        noted = provenance_of_bundle(version.place, manifest, record_of(folder)).tags()
        provenance = provenance_of_tags({**noted, **version.tags})
    provenance = with_newest_claim(provenance, place.out, version.model)
    config = _config_of(folder)
    if config is None and version.tracked_run is not None:
        config = _tracked_config(registry, version.tracked_run)
    return ModelFacts(
        name=str(version),
        bundle=version.place,
        manifest=manifest,
        trouble=trouble,
        versions=(version,),
        provenance=provenance,
        config=config,
    )


def _config_of(folder: Location | None) -> dict[str, str] | None:
    if folder is None or not (folder / CONFIG_NAME).exists():
        return None
    keys = flatten_config((folder / CONFIG_NAME).read_text())
    return {key: str(value) for key, value in keys.items()}


def _tracked_config(registry: ModelRegistry, tracked_run: str) -> dict[str, str] | None:
    try:
        return registry.parameters(tracked_run) or None
    except UserError:
        return None  # the tracked run was deleted, the version was not
