"""`heliostat export`: a bundle in plain Hugging Face format."""

from __future__ import annotations

from typing import Annotated

import typer

from heliostat.cli.screen import say
from heliostat.config.settings import put_on_path
from heliostat.storage import Location


def export(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Folder or URI of a bundle.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="New folder or URI for the export.")
    ],
) -> None:
    """Write a bundle in Hugging Face format, and prove that its logits are the same.

    Example:

      heliostat export runs/NAME/bundle exported
    """
    from pathlib import Path

    from heliostat.runs.bundle import load_bundle
    from heliostat.runs.export import export_bundle

    # The exporter is a function of the job's package.
    put_on_path(Path.cwd())
    result = export_bundle(load_bundle(Location.of(bundle)), Location.of(target))
    say(
        f"logits: {result.logits} compared, largest difference {result.max_abs_difference:.2g} "
        f"(allowed {result.allowed:.2g})"
    )
    say(f"{result.seconds:.1f} s, peak memory {result.peak_memory_bytes / 1e9:.2f} GB")
    say(f"exported: {result.folder.uri}")
