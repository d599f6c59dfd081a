"""The size of a working directory, checked before `ray job submit` tries to send it.

Ray's dashboard accepts at most 100 MiB and answers anything larger with a bare "413" (ray issues
45602 and 55877). Files are stored without compression, so their sizes add up to the package's.
"""

from __future__ import annotations

from pathlib import Path

from heliostat.cluster.ray_internals import packed_files, upload_limit_bytes
from heliostat.errors import UserError

# What a zip archive adds for each file: local header, central directory entry, end record and the
# name twice; measured 30 + 46 bytes, plus the names.
_ZIP_BYTES_PER_FILE = 76
_SHOWN_FILES = 10


def check_package_size(folder: Path, limit_bytes: int | None = None) -> int:
    """Refuse a working directory that Ray could not upload.

    Args:
        folder: what `--working-dir` names; `.gitignore` and `.rayignore` in it are honoured, and
            Ray's default exclusions.
        limit_bytes: None for what Ray's dashboard accepts.

    Returns:
        The size of the package in bytes.

    Raises:
        UserError: it is too large; the message lists the ten largest files.
    """
    limit = upload_limit_bytes() if limit_bytes is None else limit_bytes
    folder = folder.absolute()
    if not folder.is_dir():
        raise UserError(f"working directory {folder} is not a folder")
    sizes: list[tuple[int, str]] = []
    total = 0
    for path in packed_files(folder):
        name = str(path.relative_to(folder))
        size = path.stat().st_size
        sizes.append((size, name))
        total += size + _ZIP_BYTES_PER_FILE + 2 * len(name.encode())
    if total > limit:
        largest = sorted(sizes, reverse=True)[:_SHOWN_FILES]
        listing = "\n".join(f"  {_mib(size):>10}  {name}" for size, name in largest)
        raise UserError(
            f"working directory {folder} packs to {_mib(total)}, but Ray accepts at most "
            f"{_mib(limit)}: name what the job does not need in .rayignore; the largest files are\n"
            f"{listing}"
        )
    return total


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
