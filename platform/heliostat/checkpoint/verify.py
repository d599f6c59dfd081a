"""`heliostat verify` for checkpoints: is this folder a committed checkpoint, and is it whole?"""

from __future__ import annotations

from heliostat.checkpoint.manifest import Manifest, damage, read_manifest
from heliostat.errors import UserError
from heliostat.storage import Location


def verify_checkpoint(folder: Location) -> Manifest:
    """Check every file of a checkpoint against its manifest and return the manifest.

    Raises `UserError` when the folder is not a committed checkpoint or any file was changed.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{folder.uri} is not a committed checkpoint: it has no manifest.json "
            "(a checkpoint folder is named like checkpoints/step-00000100)"
        )
    problem = damage(folder, manifest, hashes=True)
    if problem is not None:
        raise UserError(f"checkpoint {folder.uri} is damaged: {problem}")
    return manifest
