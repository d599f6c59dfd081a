"""Take DeepSpeed's checkpoint as copies in memory, so that writing it does not hold up training.

DeepSpeed hands every file that it wants to write to its `checkpoint_engine`. Ours only notes the
tensors. Weights and optimiser states stay as they are until the next update, so a thread copies
them while the next forward and backward pass run, and the update waits for it (`Snapshot.capture`);
the thread then serialises, hashes and uploads the copies. The copies lie in buffers that are kept
from one checkpoint to the next, because fresh memory costs a page fault for every 4 KiB, several
times the price of the copy. The price is host memory: one copy of what the rank saves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import (
    CheckpointCommitInfo,
    CheckpointEngine,
)

from heliostat.checkpoint.safe_load import allow_deepspeed_types


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint whose large tensors may still have to be copied."""

    files: dict[str, Any]
    """What to write by file name; the tensors are overwritten by the next snapshot."""
    _copies: list[tuple[torch.Tensor, torch.Tensor]]
    """Buffers in `files`, and what they are copies of."""
    _is_ready: torch.cuda.Event | None
    """Reached on the device when the sources hold what is to be saved; None: they do already."""

    def capture(self) -> None:
        """Make the copies; before it returns the sources must not change."""
        if self._is_ready is None:
            for buffer, source in self._copies:
                buffer.copy_(source)
            return
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_event(self._is_ready)
        with torch.cuda.stream(stream):
            for buffer, source in self._copies:
                buffer.copy_(source, non_blocking=True)
        stream.synchronize()


class SnapshotEngine(CheckpointEngine):  # type: ignore[misc]
    """A checkpoint engine that keeps what it is given instead of writing it."""

    def __init__(self) -> None:
        super().__init__(None)
        self.name = "heliostat"
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}
        self._taken: dict[str, Any] = {}
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._restless: frozenset[int] = frozenset()

    def create(self, info: CheckpointCommitInfo) -> None:
        """Begin a snapshot."""
        self._taken, self._copies = {}, []

    def expect(self, module: torch.nn.Module) -> None:
        """Say whose state comes: a forward pass may change buffers, so they are copied at once."""
        self._restless = frozenset(buffer.data_ptr() for buffer in module.buffers())

    def save(self, state_dict: Any, path: str) -> None:
        """Take one file's content; `path` only names it."""
        name = Path(path).name
        self._taken[name] = self._copy(state_dict, name, "")

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing to make: nothing is written here."""

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read a file of a checkpoint, refusing anything but tensors and plain containers."""
        with allow_deepspeed_types():
            return torch.load(path, map_location=map_location, weights_only=True)

    def preserves_storage_sharing(self) -> bool:
        """False: tensors are copied here, so DeepSpeed need not clone each model first."""
        return False

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Nothing to commit here: the writer commits when all ranks have written."""
        return True

    def take(self) -> Snapshot:
        """The snapshot since `create`."""
        is_ready = None
        if any(source.device.type == "cuda" for _, source in self._copies):
            is_ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            is_ready.record()
        taken = Snapshot(self._taken, self._copies, is_ready)
        self._taken, self._copies = {}, []
        return taken

    def _copy(self, value: Any, file: str, key: str) -> Any:
        if isinstance(value, torch.Tensor):
            return self._copy_tensor(value.detach(), file, key)
        if isinstance(value, dict):
            return type(value)(
                (name, self._copy(item, file, f"{key}/{name}")) for name, item in value.items()
            )
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            return type(value)(
                self._copy(item, file, f"{key}/{index}") for index, item in enumerate(value)
            )
        return copy.deepcopy(value)

    def _copy_tensor(self, value: torch.Tensor, file: str, key: str) -> torch.Tensor:
        buffer = self._buffers.get((file, key))
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            pin = value.device.type == "cuda"
            buffer = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=pin)
            self._buffers[file, key] = buffer
        if value.data_ptr() in self._restless:
            buffer.copy_(value)
        else:
            self._copies.append((buffer, value))
        return buffer


@contextmanager
def snapshot(engine: Any, snapshots: SnapshotEngine) -> Iterator[None]:
    """Let the DeepSpeed engine save into `snapshots` for the length of the block."""
    original = engine.checkpoint_engine
    engine.checkpoint_engine = snapshots
    snapshots.expect(engine.module)
    # These two write files past the checkpoint engine: a rescue script and empty folders.
    script, files = engine._copy_recovery_script, engine._create_zero_checkpoint_files
    engine._copy_recovery_script = lambda save_path: None
    engine._create_zero_checkpoint_files = lambda save_dir, tag: None
    try:
        yield
    finally:
        engine.checkpoint_engine = original
        engine._copy_recovery_script, engine._create_zero_checkpoint_files = script, files
