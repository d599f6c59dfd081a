"""Bundles: everything needed to use a model, checksummed, and nothing of its training.

A bundle is a folder with `model.safetensors`, a card (`README.md`), whatever parts the job adds
(config, tokenizer, preprocessing, label map) and a manifest, which is written last. Loading reads
every byte once and refuses a bundle of which a file was changed, is missing or came in addition.
Pickles are refused in both directions, whatever the manifest says.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from heliostat.config.settings import settings
from heliostat.errors import BundleError
from heliostat.runs.canonical import pretty
from heliostat.runs.card import Card, render_card
from heliostat.runs.manifest import (
    MANIFEST_NAME,
    Manifest,
    make_manifest,
    parse_manifest,
    render_manifest,
    verify_files,
)
from heliostat.runs.weights import WEIGHTS_NAME, read_weights, write_weights
from heliostat.storage import Location

if TYPE_CHECKING:
    import torch

CARD_NAME = "README.md"

Part = bytes | str | Path | Mapping[str, object]
"""Content of a part: bytes, text, a local file or folder, or JSON."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle; `load_bundle` makes one."""

    source: Location
    """Where it was loaded from."""
    folder: Path
    """Its verified files on this machine; of a local bundle the same place."""
    manifest: Manifest

    @property
    def kind(self) -> str:
        """What it is: `classifier`, `language-model`, ..."""
        return self.manifest.kind

    @property
    def metadata(self) -> Mapping[str, object]:
        """What the job noted down when it was made."""
        return self.manifest.metadata

    @property
    def version(self) -> str:
        """The first digits of the manifest's digest; another content is another version."""
        return self.manifest.version

    def path(self, name: str) -> Path:
        """The local path of a file or folder of the bundle."""
        files = self.manifest.files
        if name not in files and not any(file.startswith(f"{name}/") for file in files):
            raise BundleError(f"the bundle {self.source} has no {name}; it has {', '.join(files)}")
        return self.folder / name

    def json(self, name: str) -> dict[str, object]:
        """The content of a JSON part."""
        try:
            content = json.loads(self.path(name).read_bytes())
        except ValueError as error:
            raise BundleError(f"{name} of the bundle {self.source} is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise BundleError(f"{name} of the bundle {self.source} holds no JSON object")
        return content

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors by name, on the CPU."""
        return read_weights(self.path(WEIGHTS_NAME))


def save_bundle(
    folder: Location,
    *,
    weights: Mapping[str, torch.Tensor] | Path | Location,
    parts: Mapping[str, Part],
    card: Card,
    kind: str,
    metadata: Mapping[str, object],
) -> str:
    """Write a bundle, replacing the one that is there; returns its version.

    It is put together aside. Locally it then takes its name in one rename; on an object store its
    manifest comes last, and without one there is no bundle. `weights` may be a safetensors file, or
    a folder with `model.safetensors`.
    """
    if folder.is_local:
        _refuse_to_replace(folder.local_path)
        folder.parent.make_dir()
    beside = folder.parent.local_path if folder.is_local else None
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=beside) as scratch:
        aside = Path(scratch) / "bundle"
        aside.mkdir()
        _put_weights(weights, aside / WEIGHTS_NAME)
        for name, part in {**parts, CARD_NAME: render_card(card)}.items():
            _put_part(part, aside / _checked_name(name))
        manifest = make_manifest(aside, kind, metadata)
        (aside / MANIFEST_NAME).write_text(render_manifest(manifest), encoding="utf-8")
        publish(aside, folder)
    return manifest.version


def load_bundle(
    location: Location | Path | str, kind: str | tuple[str, ...] | None = None
) -> Bundle:
    """Verify a bundle and open it; a `BundleError` when anything is not as it was made.

    The files of a remote bundle are copied to the cache. A bundle that is not of `kind`, or of one
    of several, is refused where any is given.
    """
    source = Location.of(location)
    manifest = read_manifest(source)
    kinds = (kind,) if isinstance(kind, str) else kind
    if kinds is not None and manifest.kind not in kinds:
        raise BundleError(
            f"{source} is of the kind {manifest.kind}; the kind {' or '.join(kinds)} is needed here"
        )
    if source.is_local:
        verify_files(source.local_path, manifest, str(source))
        return Bundle(source, source.local_path, manifest)
    return Bundle(source, _cached_copy(source, manifest), manifest)


def read_manifest(source: Location) -> Manifest:
    """What a bundle says of itself; its files are not looked at."""
    file = source / MANIFEST_NAME
    if not file.exists():
        raise BundleError(f"{source} is no complete bundle: it has no {MANIFEST_NAME}")
    return parse_manifest(_decoded(file), str(source))


def verify_bundle(location: Location | Path | str) -> str:
    """Check every byte of a bundle; returns its version or raises `BundleError`."""
    return load_bundle(location).version


def publish(aside: Path, folder: Location) -> None:
    """Give a finished local folder its final name; the manifest comes last on an object store."""
    if not folder.is_local:
        (folder / MANIFEST_NAME).delete()
        folder.delete()
        for path in sorted(aside.iterdir(), key=lambda path: path.name == MANIFEST_NAME):
            (folder / path.name).upload(path)
        return
    _sync_tree(aside)
    target = folder.local_path
    if target.exists():
        target.rename(aside.with_name("replaced"))
    aside.rename(target)
    _sync(target.parent)


def _put_weights(weights: Mapping[str, torch.Tensor] | Path | Location, target: Path) -> None:
    if isinstance(weights, Mapping):
        write_weights(weights, target)
        return
    source = Location.of(weights)
    file = source / WEIGHTS_NAME if source.is_dir() else source
    if not file.name.endswith(".safetensors"):
        raise BundleError(f"{file} is no safetensors file; a bundle takes no other weights")
    file.download(target)


def _put_part(part: Part, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(part, bytes):
        target.write_bytes(part)
    elif isinstance(part, str):
        target.write_text(part, encoding="utf-8")
    elif isinstance(part, Mapping):
        target.write_text(pretty(part), encoding="utf-8")
    elif part.is_dir():
        shutil.copytree(part, target, symlinks=True)
    else:
        shutil.copyfile(part, target)


def _checked_name(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.name == "" or name == MANIFEST_NAME:
        raise ValueError(f"{name!r} cannot name a part: give a path inside the bundle")
    return path


def _refuse_to_replace(folder: Path) -> None:
    """Only a bundle or an empty folder is replaced, never somebody's other files."""
    if folder.exists() and not (folder / MANIFEST_NAME).exists() and any(folder.iterdir()):
        raise BundleError(f"{folder} holds other files; a bundle needs a folder of its own")


def _decoded(file: Location) -> str:
    try:
        return file.read_text()
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is damaged: {error}") from error


def _cached_copy(source: Location, manifest: Manifest) -> Path:
    """The files of a remote bundle in the cache, copied and verified."""
    cache = settings().home / "cache" / "bundles"
    copy = cache / manifest.digest
    if copy.exists():
        try:
            verify_files(copy, manifest, str(copy))
            return copy
        except BundleError:
            shutil.rmtree(copy)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        aside = Path(scratch) / "bundle"
        source.download(aside)
        verify_files(aside, manifest, str(source))
        try:
            aside.rename(copy)
        except OSError:
            # Another process was quicker; its copy passed the same verification.
            if not copy.exists():
                raise
    return copy


def _sync_tree(folder: Path) -> None:
    """Flush every file, so that a power cut after the rename finds them whole."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
