"""Write checkpoints while training goes on, and commit them when every rank has written.

`CheckpointWriter.save` only notes what to save. A thread copies it in memory, for which the next
update of the weights has to wait (`wait_for_copies`), and then writes the rank's files (straight
into the run folder where that is local, else through a local folder and an upload), makes them
durable, and leaves a part record `part-ATTEMPT-RANK.json` with their hashes. Rank 0 waits for the
parts of all ranks and writes the manifest: that is the commit. A rank that fails leaves no part, so
nothing is committed; training hears of it at the next save and goes on.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliostat.checkpoint.durable import write_file
from heliostat.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest, to_json
from heliostat.checkpoint.retention import collect, remove
from heliostat.storage import Location

if TYPE_CHECKING:
    from heliostat.checkpoint.snapshot import Snapshot

logger = logging.getLogger(__name__)

POLL_S = 0.05
REMOTE_POLL_S = 0.5


@dataclass(frozen=True)
class WriterPlace:
    """Who writes, and where."""

    checkpoints: Location
    """The folder of all checkpoints of this training."""
    attempt: str
    """Unique name of this start of the worker group, the same on every rank."""
    rank: int
    world_size: int
    keep: int
    """Newest checkpoints that stay, besides the best one."""


class CheckpointWriter:
    """The rank's side of saving; one lives as long as the worker group."""

    def __init__(
        self, place: WriterPlace, before_commit: Callable[[], None], last_committed: int | None
    ) -> None:
        """Make a writer.

        Args:
            place: who writes, and where.
            before_commit: called on rank 0, in its thread, before a manifest is written: to write
                whatever a restart from this checkpoint expects to find. Its failure is the
                checkpoint's failure.
            last_committed: step of the checkpoint that training goes on from.
        """
        # DeepSpeed takes seconds to import, and the driver only needs this module's names.
        from heliostat.checkpoint.snapshot import SnapshotEngine

        self._place = place
        self._before_commit = before_commit
        self._snapshots = SnapshotEngine()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._copied = threading.Event()
        self._copied.set()
        self._cancelled = threading.Event()
        self._waits_for_parts = False
        self._manifest: Manifest | None = None
        self.stalled_s = 0.0
        """Seconds that training has stood still for checkpoints."""
        self.last_committed = last_committed
        """Step of the newest checkpoint this rank knows to be committed."""

    def save(
        self,
        engine: Any,
        manifest: Manifest,
        random_state: dict[str, Any],
        own_files: Mapping[str, Any],
    ) -> None:
        """Note a snapshot and start to copy and write it. Called by all ranks, after `settle`.

        Weights and optimiser must not change before `wait_for_copies` has returned.

        Args:
            engine: the DeepSpeed engine.
            manifest: what to commit, without files.
            random_state: the rank's random states, of tensors and plain containers.
            own_files: what only this rank keeps, by file name; nobody else may change it.
        """
        from heliostat.checkpoint.buffers import BUFFERS_NAME, persistent_buffers
        from heliostat.checkpoint.snapshot import snapshot

        began = time.perf_counter()
        assert self._thread is None, "settle() comes before save()"
        with snapshot(engine, self._snapshots):
            engine.save_checkpoint("snapshot", tag=manifest.tag, save_latest=False)
        taken = self._snapshots.take()
        taken.files[f"random-{self._place.rank:05d}.pt"] = random_state
        taken.files.update(own_files)
        if self._place.rank == 0 and (buffers := persistent_buffers(engine.module)):
            taken.files[BUFFERS_NAME] = buffers
        self._failure = None
        self._copied.clear()
        self._cancelled.clear()
        self._waits_for_parts = False
        self._manifest = manifest
        self._thread = threading.Thread(
            target=self._write, args=(taken, manifest), name="checkpoint-writer", daemon=True
        )
        self._thread.start()
        self.stalled_s += time.perf_counter() - began

    def wait_for_copies(self) -> None:
        """Return when the snapshot no longer needs the weights and optimiser states themselves."""
        began = time.perf_counter()
        self._copied.wait()
        self.stalled_s += time.perf_counter() - began

    def settle(self, agree: Callable[[bool], bool]) -> BaseException | None:
        """Wait for the checkpoint in flight and agree with the other ranks on how it ended.

        Args:
            agree: a collective that tells whether its argument is true on every rank.

        Returns:
            None if it was committed or none was in flight, else this rank's or a peer's failure.
        """
        if self._thread is None:
            return None
        assert self._manifest is not None
        began = time.perf_counter()
        if self._place.rank != 0:
            self._thread.join()
        # Rank 0's thread also waits for the others' parts, which never come from a failed rank.
        while self._place.rank == 0 and self._thread.is_alive() and not self._waits_for_parts:
            self._thread.join(POLL_S)
        all_written = agree(self._failure is None)
        if not all_written:
            self._cancelled.set()
        self._thread.join()
        self._thread = None
        is_committed = agree(self._failure is None and all_written)
        if is_committed:
            self.last_committed = self._manifest.state.step
        elif self._place.rank == 0:
            self._clean_up(self._manifest)
        self.stalled_s += time.perf_counter() - began
        if is_committed:
            return None
        return self._failure or OSError(errno.EIO, "another worker could not write its part")

    def _write(self, taken: Snapshot, manifest: Manifest) -> None:
        folder = self._place.checkpoints / manifest.tag
        try:
            try:
                taken.capture()
            finally:
                self._copied.set()
            records = self._write_files(taken.files, folder)
            part = json.dumps([asdict(record) for record in records])
            (folder / self._part_name(self._place.rank)).write_text(part)
            if self._place.rank == 0:
                self._waits_for_parts = True
                self._commit(folder, manifest)
        except Exception as error:
            self._failure = error
            logger.warning("checkpoint %s could not be written: %s", manifest.tag, error)

    def _write_files(self, files: dict[str, Any], folder: Location) -> list[FileRecord]:
        if folder.is_local:
            folder.make_dir()
            return [write_file(folder.local_path / name, data) for name, data in files.items()]
        staging = Path(tempfile.mkdtemp(prefix="heliostat-checkpoint-"))
        try:
            records = []
            for name, data in files.items():
                records.append(write_file(staging / name, data))
                (folder / name).upload(staging / name)
                (staging / name).unlink()
            return records
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _commit(self, folder: Location, manifest: Manifest) -> None:
        records: list[FileRecord] = []
        parts = [folder / self._part_name(rank) for rank in range(self._place.world_size)]
        poll_s = POLL_S if folder.is_local else REMOTE_POLL_S
        for part in parts:
            while not part.exists():
                if self._cancelled.wait(poll_s):
                    raise OSError(errno.EIO, "another worker could not write its part")
            records += [FileRecord(**record) for record in json.loads(part.read_text())]
        self._before_commit()
        (folder / MANIFEST_NAME).write_text(to_json(replace(manifest, files=records)))
        try:
            for part in parts:
                part.delete()
            state = manifest.state
            collect(self._place.checkpoints, self._place.keep, state.step, state.best_step)
        except Exception as error:
            # The checkpoint is committed; what could not be removed now goes with the next one.
            logger.warning("old checkpoints could not be removed: %s", error)

    def _clean_up(self, manifest: Manifest) -> None:
        """Give the space of a failed checkpoint back; all ranks have stopped writing to it.

        On an object store, which may be what failed, it is left to the next start.
        """
        folder = self._place.checkpoints / manifest.tag
        if not folder.is_local:
            return
        try:
            remove(folder)
        except Exception as error:
            logger.warning("%s could not be removed: %s", folder.uri, error)

    def _part_name(self, rank: int) -> str:
        return f"part-{self._place.attempt}-{rank:05d}.json"
