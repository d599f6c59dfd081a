"""Checkpoints without a training: folders with a manifest, or a real engine of one process."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from heliostat.checkpoint.manifest import (
    FORMAT,
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    TrainState,
    tag_of,
    to_json,
)
from heliostat.storage import Location

Commit = Callable[..., Location]


def state_at(step: int, best_step: int | None = None) -> TrainState:
    return TrainState(
        step=step,
        position=step * 12,
        counts={"tokens": 10.0 * step},
        best_value=None if best_step is None else 1.0,
        best_step=best_step,
        evaluations_since_best=0,
        metrics={},
        trained_s=0.5,
    )


@pytest.fixture
def checkpoints(tmp_path: Path) -> Location:
    """A folder for checkpoints."""
    return Location.of(tmp_path / "checkpoints")


@pytest.fixture
def commit(checkpoints: Location) -> Commit:
    """Make a committed checkpoint of a few files."""

    def make(
        step: int, *, place: Location = checkpoints, format: int = FORMAT, world_size: int = 2
    ) -> Location:
        folder = place / tag_of(step)
        records = []
        for rank in range(world_size):
            data = f"step {step} of rank {rank}".encode() * 50
            (folder / f"rank-{rank}.pt").write_bytes(data)
            records.append(FileRecord(f"rank-{rank}.pt", len(data), sha256(data).hexdigest()))
        manifest = Manifest(
            format=format,
            tag=tag_of(step),
            state=state_at(step),
            world_size=world_size,
            zero_stage=2,
            precision="fp32",
            config_digest="abc",
            stream_fingerprint="f",
            versions={},
            files=records,
        )
        (folder / MANIFEST_NAME).write_text(to_json(manifest))
        return folder

    return make
