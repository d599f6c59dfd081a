"""Locks that torch leaves behind when a process dies while it compiles an extension.

torch builds an extension under a file named `lock` and every other process waits for that file to
go, without limit (`torch.utils.file_baton`, 2.13). A builder that was killed never removes it, and
every later run hangs silently (DeepSpeed issue 5677). The builder holds the file open, so a lock is
stale when nobody on this machine does and it is older than any build takes; the age guards builders
on other machines that share the folder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from heliostat.cluster.ray_cluster import extensions_folder

BUILD_LIMIT_S = 600.0
"""Longer than any build takes (95 s of one core were measured for the longest)."""

_LOCK_NAME = "lock"
_DEFAULT_FOLDER = Path("~/.cache/torch_extensions")


@dataclass(frozen=True)
class BuildLock:
    """A lock on an extension's build folder."""

    path: Path
    age_s: float
    is_held: bool
    """Whether a process of this machine has it open, so that a build may go on."""

    def is_stale(self, older_than_s: float) -> bool:
        """Whether whoever made it is gone."""
        return not self.is_held and self.age_s > older_than_s


def extension_folders() -> tuple[Path, ...]:
    """Where torch extensions are built: by our workers, and by everything else."""
    return extensions_folder(), _DEFAULT_FOLDER.expanduser()


def find_build_locks(folders: Sequence[Path]) -> list[BuildLock]:
    """Every lock under the folders, the oldest first."""
    paths = {
        path.resolve()
        for folder in folders
        if folder.is_dir()
        for path in folder.rglob(_LOCK_NAME)
        if path.is_file()
    }
    held = _open_files(paths)
    now = time.time()
    locks = []
    for path in paths:
        # A builder that is just done removes its lock between the listing and this line.
        with suppress(FileNotFoundError):
            locks.append(BuildLock(path, now - path.stat().st_mtime, path in held))
    return sorted(locks, key=lambda lock: lock.age_s, reverse=True)


def clear_stale_build_locks(
    older_than_s: float = BUILD_LIMIT_S, folders: Sequence[Path] | None = None
) -> list[Path]:
    """Remove the locks whose builder is gone, and tell which.

    Args:
        older_than_s: younger ones are left alone.
        folders: None for `extension_folders()`.
    """
    locks = find_build_locks(extension_folders() if folders is None else folders)
    stale = [lock.path for lock in locks if lock.is_stale(older_than_s)]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _open_files(paths: set[Path]) -> set[Path]:
    """Those of the files that some process we may look into has open."""
    if not paths:
        return set()
    import psutil

    held: set[Path] = set()
    for process in psutil.process_iter():
        # Processes end while we look, and those of other users are closed to us.
        with suppress(psutil.Error, OSError):
            held.update(Path(file.path) for file in process.open_files())
    return paths & held
