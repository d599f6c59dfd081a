"""Runs that start with one call, without a tracker unless a test asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heliostat.config.resources import TrackerConfig
from heliostat.runs.lock import LockTiming
from heliostat.runs.run import Run
from heliostat.storage import Location

YAML = "seed: 3\nfit:\n  batch: 16\n  lr: 0.001\nresources:\n  workers: 1\n"
DIGEST = "abcdef0123456789"
FAST = LockTiming(beat_s=0.05, stale_s=0.5, settle_s=0.05)

Starter = Callable[..., Run]


@pytest.fixture
def resolved_yaml() -> str:
    """The config that runs are started with."""
    return YAML


@pytest.fixture
def digest() -> str:
    """Its digest."""
    return DIGEST


@pytest.fixture
def out(tmp_path: Path) -> Location:
    """A folder for runs."""
    return Location.of(tmp_path / "runs")


@pytest.fixture
def start(out: Location) -> Iterator[Starter]:
    """Start a run; those that a test leaves open are ended."""
    started: list[Run] = []

    def begin(
        name: str | None = None,
        *,
        again: bool = False,
        place: Location = out,
        resolved_yaml: str = YAML,
        digest: str = DIGEST,
        tracker: bool = False,
    ) -> Run:
        options = {
            "resolved_yaml": resolved_yaml,
            "digest": digest,
            "seed": 3,
            "tracker": TrackerConfig(enabled=tracker),
            "timing": FAST,
        }
        opened = Run.open_or_create if again else Run.create
        run = opened(place, "demo", name=name, **options)
        started.append(run)
        return run

    yield begin
    for run in started:
        run.__exit__(None, None, None)
