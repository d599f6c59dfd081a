"""The manifest of a bundle: its kind, its metadata, and the size and SHA-256 of every file.

It carries a digest of itself, so a change in the metadata is found as surely as one in the weights.
That guards against accidents and half copies, not against somebody who makes a new manifest: for
that compare the version with the one that was announced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from heliostat.errors import BundleError
from heliostat.runs.canonical import fingerprint, finite, pretty, round_trip
from heliostat.runs.pickles import refuse_pickle
from heliostat.storage import digest

MANIFEST_NAME = "manifest.json"
FORMAT = "heliostat-bundle"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`."""

    kind: str
    metadata: dict[str, object]
    files: dict[str, FileEntry]

    @property
    def digest(self) -> str:
        """The SHA-256 of everything the manifest says."""
        return fingerprint({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)})

    @property
    def version(self) -> str:
        """The first twelve digits of the digest: the name of this very content."""
        return self.digest[:12]


def make_manifest(folder: Path, kind: str, metadata: Mapping[str, object]) -> Manifest:
    """Describe a folder that is complete but for its manifest."""
    entries = {}
    for name, path in _walk(folder, str(folder)):
        refuse_pickle(path, name)
        entries[name] = FileEntry(sha256=digest(path), bytes=path.stat().st_size)
    plain = round_trip(finite(dict(metadata)), "the metadata of a bundle")
    assert isinstance(plain, dict)
    return Manifest(kind=kind, metadata=plain, files=entries)


def render_manifest(manifest: Manifest) -> str:
    """The manifest as the text of `manifest.json`."""
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "digest": manifest.digest}
    return pretty({**head, **asdict(manifest)})


def parse_manifest(text: str, place: str) -> Manifest:
    """Read the text of `manifest.json`; `place` names the bundle in a refusal."""
    try:
        content = json.loads(text)
        found = (content["format"], content["format_version"])
        if found != (FORMAT, FORMAT_VERSION):
            raise BundleError(
                f"{place} is in format {found[0]!r} version {found[1]!r}; this Heliostat reads "
                f"{FORMAT!r} version {FORMAT_VERSION}"
            )
        files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
        manifest = Manifest(content["kind"], content["metadata"], files)
        is_whole = content["digest"] == manifest.digest
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{place} has a damaged {MANIFEST_NAME}: {error!r}") from error
    if not is_whole:
        raise BundleError(f"{place} has a {MANIFEST_NAME} that was changed after it was made")
    return manifest


def verify_files(folder: Path, manifest: Manifest, place: str) -> None:
    """Raise a `BundleError` unless the folder holds exactly the files of its manifest."""
    found = {name: path for name, path in _walk(folder, place) if name != MANIFEST_NAME}
    missing = sorted(manifest.files.keys() - found.keys())
    if missing:
        raise BundleError(f"{place} is incomplete: {_listed(missing)} missing")
    extra = sorted(found.keys() - manifest.files.keys())
    if extra:
        raise BundleError(f"{place} was changed: {_listed(extra)} not in its {MANIFEST_NAME}")
    for name, path in found.items():
        entry = manifest.files[name]
        if path.stat().st_size != entry.bytes or digest(path) != entry.sha256:
            raise BundleError(f"{place} was changed: {name} is not the file that was put there")
        refuse_pickle(path, f"{name} in {place}")


def _walk(folder: Path, place: str) -> Iterator[tuple[str, Path]]:
    """Every file below a folder as (posix name, path), sorted; links are refused."""
    for root, folders, files in os.walk(folder):
        for name in sorted([*folders, *files]):
            path = Path(root) / name
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise BundleError(f"{place} holds a link, {relative}; a bundle holds only files")
            if name in files:
                yield relative, path


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    verb = "is" if len(names) == 1 else "are"
    return f"{shown}{' and others' if len(names) > 5 else ''} {verb}"
