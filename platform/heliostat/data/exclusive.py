"""One process at a time in a local folder, by `flock`; the lock of a killed process is free again.

Object stores offer no locks through pyarrow, so there it lets everybody in: what is done under it
must then be harmless when done twice.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from heliostat.storage import Location

logger = logging.getLogger(__name__)

_LOCK = ".lock"


@contextmanager
def only_one(folder: Location) -> Iterator[None]:
    """Hold the folder, after waiting for whoever holds it."""
    if not folder.is_local:
        yield
        return
    folder.make_dir()
    with (folder.local_path / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process works on %s; waiting for it", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
