"""`heliostat verify`: is a checkpoint or bundle whole and unchanged?"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from heliostat.cli.screen import say
from heliostat.errors import CheckpointError, UserError
from heliostat.storage import Location

MANIFEST = "manifest.json"


def verify(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder or URI of one of them.")],
) -> None:
    """Check every file of a checkpoint or bundle against its manifest; nothing is unpickled.

    Example:

      heliostat verify runs/NAME/bundle
    """
    place = Location.of(path)
    if is_bundle(place):
        from heliostat.runs.bundle import verify_bundle

        say(f"bundle {place.uri}: whole, version {verify_bundle(place)}")
    else:
        from heliostat.checkpoint.verify import verify_checkpoint

        try:
            manifest = verify_checkpoint(place)
        except CheckpointError as error:
            # A damaged checkpoint is what was asked about, not a fault of ours.
            raise UserError(str(error)) from error
        say(f"checkpoint {place.uri}: whole, step {manifest.state.step}")


def is_bundle(place: Location) -> bool:
    """Whether the manifest at `place` is that of a bundle; raises `UserError` without one."""
    if not place.exists():
        raise UserError(f"there is nothing at {place.uri}")
    manifest = place / MANIFEST
    if not place.is_dir() or not manifest.exists():
        raise UserError(
            f"{place.uri} is neither a checkpoint nor a bundle: it has no {MANIFEST} "
            "(try runs/NAME/bundle, or a folder in runs/NAME/stages/STAGE/checkpoints)"
        )
    try:
        content = json.loads(manifest.read_text())
    except ValueError as error:
        raise UserError(f"{manifest.uri} is damaged: it is not JSON ({error})") from error
    return isinstance(content, dict) and content.get("format") == "heliostat-bundle"
