"""Stages of a run: pieces of work that are done once, however often the run is started.

A stage has a folder, `stages/NAME/`, and a marker beside it, `stages/NAME.json`. The marker is
written when the work begins and again, with the result, when it is over: only then is the stage
done. Work that was cut off gets its folder back and may go on from what it finds there. A stage
whose key has changed starts over in an empty folder; a costly one, a training, is refused instead.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeVar, cast

from heliostat.errors import StorageError, UserError
from heliostat.runs.canonical import fingerprint, round_trip
from heliostat.runs.record import StageTime
from heliostat.storage import Location

logger = logging.getLogger(__name__)
R = TypeVar("R")

STAGES_FOLDER = "stages"
TRIALS = "trials"
"""Folder of a sweep with a run folder for each of its trials."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class StageMarker:
    """The content of `stages/NAME.json`."""

    name: str
    key: str
    """Fingerprint of everything that the caller says decides the result."""
    status: Literal["running", "finished"]
    attempts: int
    seconds: float
    result: object

    @property
    def time(self) -> StageTime:
        """What the run's record says of the stage."""
        return StageTime(status=self.status, seconds=self.seconds, attempts=self.attempts)


def do_stage(
    run_folder: Location,
    name: str,
    key: object,
    work: Callable[[Location], R],
    note: Callable[[StageMarker], None],
    *,
    is_costly: bool = False,
) -> R:
    """The result of a stage: read if the stage is done, else made by `work(folder)`.

    `key` is plain JSON; `note` is told of every change of the marker; `is_costly` work is not
    thrown away when its key has changed, but a `UserError`.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a stage's name is letters, digits, dots, dashes, underscores; got {name!r}"
        )
    wanted = fingerprint(key)
    marker = _usable_marker(run_folder, name, wanted, is_costly)
    if marker.status == "finished":
        logger.info("stage %s was done before (%.1f s)", name, marker.seconds)
        note(marker)
        return cast(R, marker.result)
    folder = run_folder / STAGES_FOLDER / name
    folder.make_dir()
    begun = replace(marker, attempts=marker.attempts + 1)
    _write(run_folder, begun, note)
    started = time.monotonic()
    try:
        result = round_trip(work(folder), f"the result of stage {name}")
    except BaseException:
        spent = begun.seconds + time.monotonic() - started
        try:
            _write(run_folder, replace(begun, seconds=spent), note)
        except StorageError as error:
            # What stopped the stage is what matters; the marker only misses its duration.
            logger.warning("the time of stage %s was not recorded: %s", name, error)
        raise
    spent = begun.seconds + time.monotonic() - started
    _write(run_folder, replace(begun, status="finished", seconds=spent, result=result), note)
    return cast(R, result)


def read_marker(run_folder: Location, name: str) -> StageMarker | None:
    """The marker of a stage, or None when its work never began."""
    file = run_folder / STAGES_FOLDER / f"{name}.json"
    if not file.exists():
        return None
    try:
        return StageMarker(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file.uri} is no stage marker; delete it to do the stage anew") from error


def _usable_marker(run_folder: Location, name: str, key: str, is_costly: bool) -> StageMarker:
    """The marker of earlier work with the same key; otherwise a fresh one and an empty folder."""
    marker = read_marker(run_folder, name)
    if marker is not None and marker.key == key:
        return marker
    if marker is not None and is_costly:
        folder = run_folder / STAGES_FOLDER / name
        raise UserError(
            f"what stage {name} of this run depends on, data, code or settings, is not what it was "
            f"when {folder.uri} was made; start a new run, or delete that folder and {name}.json "
            "beside it to do the stage anew"
        )
    if marker is not None:
        logger.info("stage %s is done anew: what it depends on has changed", name)
    # The marker goes first: a folder without one counts as rubbish, never as somebody's work.
    (run_folder / STAGES_FOLDER / f"{name}.json").delete()
    (run_folder / STAGES_FOLDER / name).delete()
    return StageMarker(name=name, key=key, status="running", attempts=0, seconds=0.0, result=None)


def _write(run_folder: Location, marker: StageMarker, note: Callable[[StageMarker], None]) -> None:
    text = json.dumps(asdict(marker), indent=2, ensure_ascii=False) + "\n"
    (run_folder / STAGES_FOLDER / f"{marker.name}.json").write_text(text)
    note(marker)
