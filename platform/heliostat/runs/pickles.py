"""How to tell a pickle, which runs code when it is loaded, from data.

By name, by content (a protocol-2-or-later pickle begins with 0x80 and its protocol and ends with a
stop) and inside a zip archive, which is what `torch.save` writes. A safetensors file is exempt from
the look at content: its first bytes are a length and may be anything.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from heliostat.errors import BundleError

_SUFFIXES = frozenset(
    (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".dill", ".cloudpickle")
)
_PROTOCOLS = (2, 3, 4, 5)


def refuse_pickle(file: Path, name: str) -> None:
    """Raise a `BundleError` if the file is a pickle or holds one; `name` is for the message."""
    if is_pickle(file):
        raise BundleError(
            f"{name} is a pickle, which can run code when it is loaded; a bundle holds "
            "safetensors, JSON and text"
        )


def is_pickle(file: Path) -> bool:
    """Whether the file's name or content is that of a pickle."""
    suffix = file.suffix.lower()
    if suffix in _SUFFIXES:
        return True
    if suffix == ".safetensors":
        return False
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return any(Path(name).suffix.lower() in _SUFFIXES for name in archive.namelist())
    with file.open("rb") as content:
        head = content.read(2)
        if len(head) < 2 or head[0] != 0x80 or head[1] not in _PROTOCOLS:
            return False
        content.seek(-1, os.SEEK_END)
        return content.read(1) == b"."
