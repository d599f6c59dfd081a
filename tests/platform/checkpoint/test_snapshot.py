"""A snapshot holds what was to be saved, though it is copied while training goes on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from heliostat.checkpoint.manifest import FORMAT, Manifest, TrainState, tag_of
from heliostat.checkpoint.snapshot import Snapshot, SnapshotEngine
from heliostat.checkpoint.writer import CheckpointWriter, WriterPlace
from heliostat.storage import Location


class Counting(torch.nn.Module):
    """A weight, and a buffer that every forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(4.0))
        self.register_buffer("seen", torch.zeros(1))


def test_buffers_are_copied_at_once_and_weights_when_asked() -> None:
    model, snapshots = Counting(), SnapshotEngine()
    for count in (1.0, 2.0):
        model.seen.fill_(count)
        snapshots.expect(model)
        snapshots.save({"module": model.state_dict(), "steps": [count]}, "folder/model.pt")
        taken = snapshots.take()
        model.seen.fill_(-1.0)
        taken.capture()
        with torch.no_grad():
            model.weight.add_(1.0)
        saved = taken.files["model.pt"]
        assert saved["module"]["seen"].item() == count
        assert saved["module"]["weight"].tolist() == [value + count - 1 for value in range(4)]
        assert saved["steps"] == [count]


def test_the_update_waits_until_everything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, may_copy, is_waiting = Counting(), threading.Event(), threading.Event()
    original = Snapshot.capture

    def slowly(self: Snapshot) -> None:
        assert may_copy.wait(60)
        original(self)

    monkeypatch.setattr(Snapshot, "capture", slowly)
    writer = CheckpointWriter(
        WriterPlace(Location.of(tmp_path), "a", rank=0, world_size=1, keep=1), lambda: None, None
    )

    class Engine:
        """The part of DeepSpeed's engine that a snapshot touches."""

        module = model
        checkpoint_engine = None
        _copy_recovery_script = _create_zero_checkpoint_files = None

        def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
            self.checkpoint_engine.save({"module": model.state_dict()}, f"{folder}/{tag}/model.pt")

    state = TrainState(1, 2, {}, None, None, 0, {}, 0.0)
    manifest = Manifest(FORMAT, tag_of(1), state, 1, 0, "fp32", "abc", "f", {}, [])
    writer.save(Engine(), manifest, {}, {})

    def update() -> None:
        is_waiting.set()
        writer.wait_for_copies()
        with torch.no_grad():
            model.weight.zero_()

    updating = threading.Thread(target=update)
    updating.start()
    assert is_waiting.wait(60)
    updating.join(0.1)
    assert updating.is_alive()
    may_copy.set()
    updating.join(60)
    assert writer.settle(lambda flag: flag) is None
    saved = torch.load(tmp_path / "step-00000001" / "model.pt", weights_only=True)
    assert saved["module"]["weight"].tolist() == [0.0, 1.0, 2.0, 3.0]
