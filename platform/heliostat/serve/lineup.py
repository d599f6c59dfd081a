"""Which versions answer, and which requests each of them gets.

A lineup is what changes while an endpoint runs: a swap is a lineup with another version, a canary
one with two, a shadow one that names a version whose answers nobody sees. A request belongs to a
version by the hash of its sticky key, so the same key always gets the same version; versions that
come later in the lineup take the upper end, so when a canary's share grows, whoever had it keeps
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b

from heliostat.errors import ConfigError

WHOLE = 100.0


@dataclass(frozen=True)
class Share:
    """A version and what it gets."""

    bundle: str
    """Path or URI of its bundle."""
    percent: float = WHOLE
    """Its share of the requests."""


@dataclass(frozen=True)
class Lineup:
    """The versions of an endpoint."""

    versions: tuple[Share, ...]
    shadow: str | None = None
    """Bundle that gets a copy of every request when there is room, and whose answers are only
    compared."""
    id: str | None = None
    """Tells one hand-over to the replicas from another, also of the same bundles; they answer
    `/healthz` with it."""

    def __post_init__(self) -> None:
        if not self.versions:
            raise ConfigError("a lineup needs at least one version")
        if any(version.percent <= 0 for version in self.versions):
            raise ConfigError("every version of a lineup needs a share above 0 percent")
        total = sum(version.percent for version in self.versions)
        if abs(total - WHOLE) > 1e-9:
            raise ConfigError(f"the shares of a lineup add up to {total:g} percent; expected 100")
        bundles = [version.bundle for version in self.versions]
        if len(set(bundles)) != len(bundles):
            raise ConfigError(f"a lineup names a bundle twice: {', '.join(bundles)}")

    @property
    def bundles(self) -> tuple[str, ...]:
        """Every bundle it needs."""
        named = [version.bundle for version in self.versions]
        return tuple(dict.fromkeys([*named, *([self.shadow] if self.shadow else [])]))

    def place(self, sticky_key: str) -> int:
        """The version that a key belongs to, as its position."""
        point = WHOLE * _unit(sticky_key)
        end = 0.0
        for position, version in enumerate(self.versions):
            end += version.percent
            if point < end:
                return position
        return len(self.versions) - 1

    def to_json(self) -> dict[str, object]:
        """The `user_config` of the deployment; the id belongs to a hand-over, not to a file."""
        return {"versions": [asdict(version) for version in self.versions], "shadow": self.shadow}


def lineup_of(raw: Mapping[str, object]) -> Lineup:
    """Read a `user_config`; raises `ConfigError` naming what is wrong with it."""
    unknown = sorted(set(raw) - {"versions", "shadow", "id"})
    if unknown:
        raise ConfigError(f"user_config has {', '.join(unknown)}; expected versions and shadow")
    versions, shadow = raw.get("versions"), raw.get("shadow")
    if not isinstance(versions, Sequence) or isinstance(versions, str):
        raise ConfigError("user_config.versions is no list; expected {bundle, percent} for each")
    if shadow is not None and not (isinstance(shadow, str) and shadow):
        raise ConfigError(f"user_config.shadow is {shadow!r}; expected the path of a bundle")
    id_ = raw.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise ConfigError(f"user_config.id is {id_!r}; expected a text")
    return Lineup(tuple(_share_of(entry) for entry in versions), shadow, id_)


def _share_of(entry: object) -> Share:
    if not isinstance(entry, Mapping) or not {"bundle"} <= set(entry) <= {"bundle", "percent"}:
        raise ConfigError(f"user_config.versions holds {entry!r}; expected {{bundle, percent}}")
    percent = entry.get("percent", WHOLE)
    if isinstance(percent, bool) or not isinstance(percent, (int, float)) or percent != percent:
        raise ConfigError(f"user_config.versions has the share {percent!r}; expected a number")
    if not isinstance(entry["bundle"], str) or not entry["bundle"]:
        raise ConfigError(
            f"user_config.versions has the bundle {entry['bundle']!r}; expected a path or URI"
        )
    return Share(entry["bundle"], float(percent))


def _unit(key: str) -> float:
    """A key as a number in [0, 1), the same on every machine."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
