"""Trainings of the tiny task on the session's cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from trainings import CONFIG, EVAL_ROWS, TRAIN_ROWS, Trainings

from heliostat.storage import Location
from heliostat.train.config import FitConfig
from heliostat.train.fit import FitResult
from tiny_task import TinyTask, write_rows

Trained = Callable[..., FitResult]


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> TinyTask:
    """The task on rows whose numbers are multiples of nothing."""
    folder = Location.of(tmp_path_factory.mktemp("rows"))
    return TinyTask(
        train=write_rows(folder / "train", TRAIN_ROWS, seed=1),
        evaluation=write_rows(folder / "evaluation", EVAL_ROWS, seed=2),
    )


@pytest.fixture
def train(ray_cluster: None, tmp_path: Path) -> Trainings:
    """Train in a folder of this test's own."""
    return Trainings(Location.of(tmp_path / "runs"))


@pytest.fixture(scope="session")
def trained(
    ray_cluster: None, tiny_task: TinyTask, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """Finished trainings that several tests look at; each is done once."""
    trainings = Trainings(Location.of(tmp_path_factory.mktemp("trained")))
    done: dict[str, FitResult] = {}

    def get(config: FitConfig = CONFIG, *, workers: int = 1, **of_task: object) -> FitResult:
        key = repr((config, workers, sorted(of_task.items())))
        if key not in done:
            task = replace(tiny_task, **of_task)  # type: ignore[arg-type]
            done[key] = trainings(task, config, workers=workers)
        return done[key]

    return get
