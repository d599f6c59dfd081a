"""Which checkpoints stay, and how the others go.

A checkpoint may be pinned by another training that is about to start from it: then it stays until
the pin is taken away.

A checkpoint loses its manifest first: without it the folder no longer counts, even if deleting the
rest is interrupted, and the next start collects what is left.
"""

from __future__ import annotations

from heliostat.checkpoint.manifest import MANIFEST_NAME, committed, tagged
from heliostat.storage import Location

PIN = "pinned-by-"


def collect(checkpoints: Location, keep: int, step: int, best_step: int | None) -> list[str]:
    """Delete what the checkpoint of `step`, just committed, makes superfluous; returns the names.

    The newest `keep` up to that step stay, and the best one. Later ones belong to a future that
    was undone, when training went back to an older checkpoint because a newer one was damaged.
    """
    entries = [(folder, manifest.state.step) for folder, manifest in committed(checkpoints)]
    past = [entry for entry in entries if entry[1] <= step]
    undone = [folder for folder, at in entries if at > step]
    surplus = [folder for folder, at in past[: max(0, len(past) - keep)] if at != best_step]
    old = [folder for folder in surplus if not is_pinned(folder)]
    for folder in (*undone, *old):
        remove(folder)
    return [folder.name for folder in (*undone, *old)]


def collect_orphans(checkpoints: Location) -> list[str]:
    """Delete checkpoint folders that were never committed; returns their names.

    Only called before workers write, by whoever holds the run.
    """
    orphans = [folder for folder in tagged(checkpoints) if not (folder / MANIFEST_NAME).exists()]
    for orphan in orphans:
        orphan.delete()
    return [orphan.name for orphan in orphans]


def pin(folder: Location, name: str) -> None:
    """Keep a checkpoint as long as `name` needs it."""
    (folder / f"{PIN}{name}").write_text("")


def unpin(folder: Location, name: str) -> None:
    """Say that `name` does not need a checkpoint any more, if it did."""
    (folder / f"{PIN}{name}").delete()


def is_pinned(folder: Location) -> bool:
    """Whether somebody needs a checkpoint."""
    return any(file.name.startswith(PIN) for file in folder.list())


def remove(folder: Location) -> None:
    """Delete one checkpoint."""
    (folder / MANIFEST_NAME).delete()
    folder.delete()
