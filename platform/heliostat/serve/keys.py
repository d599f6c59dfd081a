"""Keys of an endpoint: named, hashed at rest, compared in constant time.

A key is 256 random bits, so one round of SHA-256 keeps it secret; there is nothing to guess that a
slow hash would protect. The file that holds the hashes is JSON:

    {"keys": [{"name": "crm", "sha256": "..."}]}
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256

from heliostat.errors import ConfigError
from heliostat.storage import Location

PREFIX = "hs_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Key:
    """A key as it is kept."""

    name: str
    sha256: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} cannot name a key; expected letters, digits, '.', '_' and '-', "
                "64 at most"
            )
        if not _HASH.fullmatch(self.sha256):
            raise ConfigError(f"the hash of key {self.name} is no SHA-256 in hexadecimal digits")


def digest_of(token: str) -> str:
    """What is kept of a key."""
    return sha256(token.encode()).hexdigest()


class KeyRing:
    """The keys that an endpoint accepts."""

    def __init__(self, keys: Sequence[Key]) -> None:
        names = [key.name for key in keys]
        if len(set(names)) != len(names):
            raise ConfigError(f"two keys have one name: {', '.join(sorted(names))}")
        self._keys = tuple(keys)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(key.name for key in self._keys)

    def holder(self, token: str) -> str | None:
        """The name of the key, or None. Every key is looked at, whichever it is."""
        digest = digest_of(token)
        found: str | None = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key.name
        return found


def read_keys(place: Location) -> list[Key]:
    """The keys of a file; raises `ConfigError` for anything that is not one."""
    if not place.exists():
        raise ConfigError(
            f"the key file {place.uri} does not exist; make one: heliostat serve key NAME "
            f"--file {place.uri}"
        )
    try:
        raw = json.loads(place.read_text())
        return [Key(str(entry["name"]), str(entry["sha256"])) for entry in raw["keys"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{place.uri} is no key file: expected {{"keys": [{{"name": ..., "sha256": ...}}]}}'
        ) from error


def add_key(place: Location, name: str) -> str:
    """Add a new key to a file, made where there is none; returns the key, which is kept nowhere."""
    keys = read_keys(place) if place.exists() else []
    if name in (key.name for key in keys):
        raise ConfigError(f"{place.uri} has a key named {name} already; remove it first")
    token = PREFIX + secrets.token_urlsafe(32)
    _write(place, [*keys, Key(name, digest_of(token))])
    return token


def remove_key(place: Location, name: str) -> None:
    """Take a key out of a file."""
    keys = read_keys(place)
    if name not in (key.name for key in keys):
        raise ConfigError(
            f"{place.uri} has no key named {name}; it has {', '.join(key.name for key in keys)}"
        )
    _write(place, [key for key in keys if key.name != name])


def _write(place: Location, keys: Sequence[Key]) -> None:
    place.write_text(json.dumps({"keys": [asdict(key) for key in keys]}, indent=1) + "\n")
    if place.is_local:
        place.local_path.chmod(0o600)
