"""A run: one execution of a job, in a folder that explains itself, in stages that are done once.

`Run.create` starts a run under a name that no run has; `Run.open_or_create` goes on with one, but
only with the config it was started with. The folder holds

    config.yaml      the resolved config
    run.json         identity: id, job, seed, digest of the config
    stages/          a folder and a marker for each stage (`stages.py`)
    metrics/         metric lines of each attempt, and at the end metrics.parquet (`series.py`)
    result.json      what became of it (`record.py`)
    lock.json        who works on it now (`lock.py`)
    tracker.json     under which id the tracker knows it (`tracker.py`)

and what the job puts there by `artefact`: checkpoints, bundle, report. A `Run` belongs to the
driver process and is never sent to workers: give those `folder` and `attempt`. Stages of different
names may be worked on, and metrics logged, in several threads at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from heliostat.config.resources import TrackerConfig
from heliostat.config.settings import settings
from heliostat.errors import BundleError, HeliostatError, Interrupted, StorageError
from heliostat.runs import clock
from heliostat.runs.differences import flatten_config
from heliostat.runs.environment import hardware
from heliostat.runs.lock import DEFAULT_TIMING, LockTiming
from heliostat.runs.mlflow_registry import VERSION_TAG
from heliostat.runs.mlflow_session import TrackedRun
from heliostat.runs.opening import CONFIG_NAME, Opened, RunSpec, open_again, open_new
from heliostat.runs.provenance import tags_of_bundle
from heliostat.runs.record import RESULT_NAME, RunRecord, Status, write_record
from heliostat.runs.series import MetricsLog, SeriesByStage, read_series, write_metrics_table
from heliostat.runs.stages import StageMarker, do_stage
from heliostat.runs.tracker import Tracker
from heliostat.runs.tracker_address import tracker_address
from heliostat.storage import Location

logger = logging.getLogger(__name__)
R = TypeVar("R")

_ATTACHED = (CONFIG_NAME, RESULT_NAME, "claim.json", "report/index.html")


class Run:
    """One attempt at a run, from taking its lock to `finish`; a context manager."""

    def __init__(self, out: Location, opened: Opened, tracker: TrackerConfig) -> None:
        self.id = opened.identity.id
        self.job = opened.identity.job
        self.seed = opened.identity.seed
        self.digest = opened.identity.digest
        self.folder = opened.folder
        self.attempt = opened.record.attempts[-1].number
        """Counts up from 1 with every start of the run."""
        self._out = out
        self._lock = opened.lock
        self._record = opened.record
        self._recording = threading.Lock()
        self._metrics = MetricsLog(self.folder, self.attempt)
        self._trackers = [Tracker(_tracked(out, opened, tracker))] if tracker.enabled else []
        self._is_open = True

    @classmethod
    def create(
        cls,
        out: Location,
        job: str,
        *,
        name: str | None,
        resolved_yaml: str,
        digest: str,
        seed: int,
        tracker: TrackerConfig,
        timing: LockTiming = DEFAULT_TIMING,
    ) -> Run:
        """Start a new run in `out`; a UserError when there is one of that name.

        Without a name it gets one from the job, the digest and the time, and it is unique.
        """
        spec = RunSpec(job=job, resolved_yaml=resolved_yaml, digest=digest, seed=seed)
        return cls(out, open_new(out, spec, name, timing), tracker)

    @classmethod
    def open_or_create(
        cls,
        out: Location,
        job: str,
        *,
        name: str,
        resolved_yaml: str,
        digest: str,
        seed: int,
        tracker: TrackerConfig,
        timing: LockTiming = DEFAULT_TIMING,
    ) -> Run:
        """Go on with the run of that name, or start it.

        A UserError when it was started with another config (another digest), naming the keys, and
        `RunBusyError` when a live process works on it.
        """
        spec = RunSpec(job=job, resolved_yaml=resolved_yaml, digest=digest, seed=seed)
        return cls(out, open_again(out, spec, name, timing), tracker)

    @property
    def cache(self) -> Location:
        """Where data prepared once for many runs go: in the home, or beside remote run folders."""
        return cache_for(self._out)

    @property
    def record(self) -> RunRecord:
        """What `result.json` says now."""
        return self._record

    @property
    def seconds(self) -> float:
        """Work so far: this attempt and those before it, without the time between them."""
        return self._record.with_attempt(
            replace(self._record.attempts[-1], ended=clock.now())
        ).seconds

    def artefact(self, name: str) -> Location:
        """A file or folder of the run: `run.artefact("bundle")`."""
        return self.folder / name

    def series(self) -> SeriesByStage:
        """Every metric logged so far, over all attempts."""
        if self._is_open:
            self._metrics.flush()
        return read_series(self.folder)

    def stage(
        self, name: str, key: object, work: Callable[[Location], R], *, is_costly: bool = False
    ) -> R:
        """The result of `work(folder)`, done once in the life of the run.

        `key` is plain JSON with everything besides the run's config that decides the result (code
        version, digest of the input); another key starts the stage over, or raises `UserError`
        where `is_costly` says that what there is must not be thrown away. The result is plain JSON.
        Work that was cut off is handed its half-done folder again.
        """
        self._lock.check()
        return do_stage(
            self.folder, name, key=key, work=work, note=self._note_stage, is_costly=is_costly
        )

    def log(self, metrics: Mapping[str, float], step: int, stage: str) -> None:
        """Log the metrics of one step of a stage, here and in the tracker."""
        self._lock.check()
        self._metrics.write(metrics, step=step, stage=stage)
        for tracker in self._trackers:
            tracker.log({f"{stage}/{name}": value for name, value in metrics.items()}, step)

    def register(self, bundle: Location, version: str) -> None:
        """Add a bundle to the tracker's model registry, under the name of the job.

        `version` is what `save_bundle` returned: a bundle that is another one by now is refused.
        """
        for tracker in self._trackers:
            tags = tags_of_bundle(bundle, self._record, claim=None)
            if tags[VERSION_TAG] != version:
                raise BundleError(
                    f"{bundle} is version {tags[VERSION_TAG]}, not {version}: it was saved again "
                    "before it was registered"
                )
            tracker.register(self.job, bundle, tags)

    def finish(
        self,
        metrics: Mapping[str, float],
        status: Status = "finished",
        *,
        error: str | None = None,
        seeds: Sequence[int] = (),
    ) -> RunRecord:
        """End this attempt: compact the metrics, write `result.json`, give the run free.

        `seeds` are all that were used, where they are more than the run's own.
        """
        self._lock.check()
        self._is_open = False
        attempt = replace(self._record.attempts[-1], status=status, ended=clock.now(), error=error)
        final = {name: float(value) for name, value in metrics.items()}
        record = self._record.with_attempt(attempt)
        if status == "finished":
            # Only now is Ray surely there to be asked; after a failure it may never answer.
            record = replace(record, hardware=hardware())
        self._record = replace(
            record, status=status, metrics=dict(final), seeds=tuple(seeds) or record.seeds
        )
        try:
            self._metrics.close()
            write_metrics_table(self.folder)
            write_record(self.folder, self._record)
        finally:
            self._end_trackers(final, status)
            self._release()
        return self._record

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """A run whose block ends without `finish` is finished, failed or interrupted by it."""
        if not self._is_open:
            return
        if error is None:
            self.finish({})
            return
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | Interrupted)
        message = str(error) if isinstance(error, HeliostatError) else repr(error)
        try:
            self.finish({}, "interrupted" if stopped else "failed", error=message)
        except HeliostatError as trouble:
            # The first error is the one to show; the record keeps saying `running`.
            logger.error("run %s: the end could not be recorded: %s", self.id, trouble)

    def _note_stage(self, marker: StageMarker) -> None:
        # Stages may be worked on in several threads, and the record is read, changed and written.
        with self._recording:
            if self._record.stages.get(marker.name) == marker.time:
                return
            stages = {**self._record.stages, marker.name: marker.time}
            self._record = replace(self._record, stages=stages)
            write_record(self.folder, self._record)

    def _end_trackers(self, metrics: Mapping[str, float], status: Status) -> None:
        for tracker in self._trackers:
            tracker.log(metrics, step=0)
            tracker.tag({"heliostat.digest": self.digest, "heliostat.attempts": str(self.attempt)})
            files = [self.folder / name for name in _ATTACHED]
            local = [file.local_path for file in files if file.is_local and file.exists()]
            tracker.finish(status, local)

    def _release(self) -> None:
        try:
            self._lock.release()
        except StorageError as error:
            logger.warning("the lock of run %s stays until it is stale: %s", self.id, error)


def cache_for(out: Location) -> Location:
    """The cache shared by the runs of a folder: in the home for local ones, else beside them."""
    return Location.of(settings().home) / "cache" if out.is_local else out / ".cache"


def _tracked(out: Location, opened: Opened, config: TrackerConfig) -> TrackedRun:
    address = tracker_address(out, config.uri)
    parameters = flatten_config((opened.folder / CONFIG_NAME).read_text())
    return TrackedRun(
        run_id=opened.identity.id,
        folder=opened.folder,
        experiment=config.experiment or opened.identity.job,
        uri=address.uri,
        artefacts=address.artefacts,
        parameters={key: str(value) for key, value in parameters.items()},
    )
