"""Write one file of a checkpoint: durable when the call returns, with the hash of what was meant.

The hash is taken of the bytes on their way to the file, so it also proves later that the disk kept
them. It is not atomic: the manifest decides which files count.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import torch

from heliostat.checkpoint.manifest import FileRecord


class _HashedFile:
    """What `torch.save` writes to: a file and a hash.

    An error is kept for `torch.save` to be over. Raised inside, it would pass through torch's C++
    writer, which then complains of its own unfinished archive and hides the reason (torch 2.13).
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered here."""


def write_file(path: Path, data: Any) -> FileRecord:
    """Write `data` with `torch.save`; a file that could not be written is removed again.

    Raises `OSError`, such as for a full disk.
    """
    try:
        with path.open("wb") as file:
            sink = _HashedFile(file)
            torch.save(data, sink)  # type: ignore[arg-type]
            if sink.error is not None:
                raise sink.error
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return FileRecord(name=path.name, size=sink.size, sha256=sink.digest.hexdigest())
