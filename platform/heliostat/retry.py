"""Trying again: which storage failures may pass by themselves, and what to say of the others.

Network errors and the passing moods of a shared disk are tried again with exponential backoff and
end in `StorageError`. What only the user can mend (nothing there, no permission, no such bucket) is
raised at once as a `UserError` of one sentence. It knows storage only: a failing computation is
never run twice.
"""

from __future__ import annotations

import errno
import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from heliostat.errors import StorageError, UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")

_TRANSIENT = frozenset(
    (
        errno.EIO,
        errno.EAGAIN,
        errno.EINTR,
        errno.EBUSY,
        errno.ESTALE,
        errno.EPIPE,
        errno.ETIMEDOUT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
    )
)
# The names that pyarrow 25 prints for the answers of S3, and the phrases of GCS and Azure.
_DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH"
    r"|INVALID_SIGNATURE|INCOMPLETE_SIGNATURE|MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT"
    r"|ExpiredToken|UNAUTHENTICATED|PERMISSION_DENIED|AuthenticationFailed|AuthorizationFailure"
)
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|Bucket '[^']*' not found|ContainerNotFound")


@dataclass(frozen=True)
class Backoff:
    """How often to try again, and how long to wait before it."""

    attempts: int = 4
    """Attempts in all. pyarrow's S3 client tries each of them again for some seconds by itself."""
    first_wait_s: float = 0.2
    """Wait after the first failure; it doubles with every further one."""
    longest_wait_s: float = 5.0

    def wait_s(self, failures: int) -> float:
        """The wait after so many failures, shortened at random to part the ranks."""
        wait = min(self.longest_wait_s, self.first_wait_s * 2.0 ** (failures - 1))
        return wait * random.SystemRandom().uniform(0.5, 1.0)


def with_retries(action: Callable[[], T], place: str, backoff: Backoff = Backoff()) -> T:
    """Run `action` until it succeeds; `place` names the location in the error that ends it."""
    failures = 0
    while True:
        try:
            return action()
        except OSError as error:
            mistake = _mistake(error, place)
            if mistake is not None:
                raise mistake from error
            failures += 1
            if error.errno is not None and error.errno not in _TRANSIENT:
                raise StorageError(f"{place}: {error.strerror or error}") from error
            if failures >= backoff.attempts:
                raise StorageError(
                    f"{place} still fails after {failures} attempts; the last error: {error}"
                ) from error
            logger.warning("%s failed (%s); attempt %d follows", place, error, failures + 1)
            time.sleep(backoff.wait_s(failures))


def _mistake(error: OSError, place: str) -> UserError | None:
    """The sentence for a failure that only the user can mend; None for any other."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return UserError(f"{place} does not exist")
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return UserError(f"{place}: a part of the path is a file, not a folder")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{place} is a folder; a file was expected")
    if isinstance(error, PermissionError) or _DENIED.search(text):
        return UserError(
            f"{place}: access denied; check the permissions and credentials of this machine"
        )
    if _NO_BUCKET.search(text):
        return UserError(f"{place}: there is no such bucket; create it first")
    return None
