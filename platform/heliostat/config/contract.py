"""What every job's config has in common; the rest is the job's own."""

from __future__ import annotations

from typing import Protocol

from heliostat.config.resources import ResourcesConfig, TrackerConfig

COMMON_KEYS = ("seed", "out", "resources", "tracker")
"""The fields of `JobConfig`; a test holds them equal."""


class JobConfig(Protocol):
    """The fields that the command line needs."""

    @property
    def seed(self) -> int: ...

    @property
    def out(self) -> str: ...

    @property
    def resources(self) -> ResourcesConfig: ...

    @property
    def tracker(self) -> TrackerConfig: ...
