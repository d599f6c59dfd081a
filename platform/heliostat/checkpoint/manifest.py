"""The manifest of a checkpoint: what makes it committed, and what proves that it is whole.

The manifest is written last and atomically, so its presence means that every file it lists was
durable before. Reading never trusts more than that: sizes are compared when a checkpoint is chosen,
hashes when it is loaded.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from heliostat.errors import CheckpointError
from heliostat.storage import Location, digest

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST_NAME = "manifest.json"
TAG = re.compile(r"step-\d{8,}")


class DamagedManifestError(CheckpointError):
    """A file in the place of a manifest that cannot be read as one."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class TrainState:
    """Where training stands, beside what DeepSpeed keeps: all of it in terms of the global run."""

    step: int
    """Optimiser steps done."""
    position: int
    """Samples of the global stream consumed."""
    counts: Mapping[str, float]
    """Targets seen so far by kind, such as tokens."""
    best_value: float | None
    """Best value of the evaluation metric so far."""
    best_step: int | None
    """The step that had it."""
    evaluations_since_best: int
    """Evaluations without improvement, for early stopping."""
    metrics: Mapping[str, float]
    """The last evaluation."""
    trained_s: float
    """Seconds spent in training steps, restarts left out."""


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint says of itself."""

    format: int
    tag: str
    state: TrainState
    world_size: int
    zero_stage: int
    precision: str
    config_digest: str
    stream_fingerprint: str
    versions: Mapping[str, str]
    files: Sequence[FileRecord]

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(file.size for file in self.files)


def to_json(manifest: Manifest) -> str:
    """The manifest as it is written."""
    return json.dumps(asdict(manifest), indent=1, sort_keys=True)


def from_json(text: str, where: str) -> Manifest:
    """Read a manifest.

    Raises `CheckpointError` for another format, and `DamagedManifestError` for what is no manifest.
    """
    try:
        raw: dict[str, Any] = json.loads(text)
        if raw["format"] != FORMAT:
            raise CheckpointError(
                f"{where} has checkpoint format {raw['format']}, this version reads {FORMAT}: "
                "go on with the version that wrote it"
            )
        files = [FileRecord(**file) for file in raw.pop("files")]
        state = TrainState(**raw.pop("state"))
        return Manifest(files=files, state=state, **raw)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedManifestError(f"{where} is not a checkpoint manifest: {error}") from error


def read_manifest(folder: Location) -> Manifest | None:
    """The manifest of a checkpoint folder, None if the checkpoint was never committed."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    return from_json(path.read_text(), path.uri)


def tag_of(step: int) -> str:
    """Folder name of the checkpoint after `step` optimiser steps; sorts by step."""
    return f"step-{step:08d}"


def committed(checkpoints: Location) -> list[tuple[Location, Manifest]]:
    """Every committed checkpoint, oldest first; a damaged manifest counts as not committed.

    Raises `CheckpointError` when one was written in another format.
    """
    found = []
    for folder in tagged(checkpoints):
        try:
            manifest = read_manifest(folder)
        except DamagedManifestError as error:
            logger.warning("%s", error)
            continue
        if manifest is not None:
            found.append((folder, manifest))
    return sorted(found, key=lambda entry: entry[1].state.step)


def tagged(checkpoints: Location) -> list[Location]:
    """Everything that is named like a checkpoint, committed or not; other files are not ours."""
    return [entry for entry in checkpoints.list() if TAG.fullmatch(entry.name)]


def damage(folder: Location, manifest: Manifest, hashes: bool) -> str | None:
    """What is wrong with a checkpoint's files, None if nothing is.

    Args:
        folder: the checkpoint.
        manifest: what it says of itself.
        hashes: whether to compare contents, beside presence and size.
    """
    for record in manifest.files:
        path = folder / record.name
        if not path.exists():
            return f"{record.name} is missing"
        size = path.size()
        if size != record.size:
            return f"{record.name} has {size} bytes, the manifest says {record.size}"
        if hashes and digest(path) != record.sha256:
            return f"{record.name} does not have the SHA-256 in the manifest"
    return None
