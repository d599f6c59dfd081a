"""A job that can be swept, found from its own folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sweep_job import write_sweep_job

from heliostat.cli.sweep import read_plan
from heliostat.config.jobs import JobEntry, find_job
from heliostat.sweep.plan import SweepPlan


@pytest.fixture
def tiny_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobEntry]:
    """The job `tiny`; what was imported of the package `jobs` is put back afterwards."""
    write_sweep_job(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = {name: module for name, module in sys.modules.items() if is_jobs(name)}
    path = list(sys.path)
    for name in before:
        del sys.modules[name]
    yield find_job("tiny")
    for name in [name for name in sys.modules if is_jobs(name)]:
        del sys.modules[name]
    sys.modules.update(before)
    sys.path[:] = path


@pytest.fixture
def plan_of(tiny_job: JobEntry) -> Callable[..., SweepPlan]:
    """The checked sweep of some words of a command line."""

    def plan(*words: str) -> SweepPlan:
        return read_plan(tiny_job, words, ())

    return plan


def is_jobs(name: str) -> bool:
    return name == "jobs" or name.startswith("jobs.")
