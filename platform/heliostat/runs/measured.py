"""What a claim has measured so far, arm by arm: a claim of many hours may be measured in parts.

Every measurement is written to `measurements.json` of its run as soon as it is there, with a
fingerprint of all that decided it. A claim that is handed such files of other runs, of another day
or machine, takes from them what it would measure the same way, and measures only the rest.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from heliostat.errors import UserError
from heliostat.runs import clock
from heliostat.runs.canonical import fingerprint, pretty
from heliostat.runs.claim import Measurement, Part
from heliostat.runs.environment import hardware, versions
from heliostat.runs.run import Run
from heliostat.storage import Location

MEASUREMENTS_NAME = "measurements.json"


@dataclass(frozen=True)
class _Measured:
    measurement: Measurement
    decided_by: str
    """Fingerprint of all that decided the figures."""


@dataclass(frozen=True)
class _File:
    part: Part
    measured: tuple[_Measured, ...]


class Measurements:
    """The measurements of a claim: those of earlier runs, and those that this run makes."""

    def __init__(self, run: Run, earlier: Sequence[Location]) -> None:
        """Read `earlier`, the `measurements.json` of other runs; a UserError where one is not."""
        self._run = run
        self._earlier = [_read(file) for file in earlier]
        own = run.folder / MEASUREMENTS_NAME
        self._own = list(_read(own).measured) if own.exists() else []
        self._used: set[int] = set()
        self._lock = threading.Lock()

    @property
    def parts(self) -> tuple[Part, ...]:
        """The earlier runs of which something was taken."""
        return tuple(self._earlier[index].part for index in sorted(self._used))

    def of(
        self, arm: str, seed: int, decided_by: object, work: Callable[[], Mapping[str, float]]
    ) -> Measurement:
        """The figures of an arm with a seed: as measured before, or else what `work` returns.

        `decided_by` is plain JSON: everything that decides the figures, besides the version of
        torch. Threads may call this at the same time.
        """
        key = fingerprint({"decided_by": decided_by, "torch": versions()["torch"]})
        for index, file in enumerate(self._earlier):
            if (known := _find(file.measured, arm, seed, key)) is not None:
                with self._lock:
                    self._used.add(index)
                return known
        if (known := _find(self._own, arm, seed, key)) is not None:
            return known
        made = Measurement(arm, seed, dict(work()))
        with self._lock:
            self._own.append(_Measured(made, key))
            (self._run.folder / MEASUREMENTS_NAME).write_text(pretty(self._as_json()))
        return made

    def _as_json(self) -> dict[str, object]:
        return {
            "run": self._run.id,
            "date": clock.now(),
            "seconds": self._run.seconds,
            "machine": hardware(),
            "versions": versions(),
            "measurements": [
                {
                    "arm": one.measurement.arm,
                    "seed": one.measurement.seed,
                    "decided_by": one.decided_by,
                    "figures": one.measurement.figures,
                }
                for one in self._own
            ],
        }


def _find(
    measured: Sequence[_Measured], arm: str, seed: int, decided_by: str
) -> Measurement | None:
    for one in measured:
        found = one.measurement
        if (found.arm, found.seed, one.decided_by) == (arm, seed, decided_by):
            return found
    return None


def _read(file: Location) -> _File:
    try:
        content = json.loads(file.read_text())
        listed = content.pop("measurements")
        return _File(
            part=Part(**content),
            measured=tuple(
                _Measured(
                    Measurement(
                        item["arm"],
                        int(item["seed"]),
                        {name: float(value) for name, value in item["figures"].items()},
                    ),
                    item["decided_by"],
                )
                for item in listed
            ),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise UserError(f"{file} holds no measurements of a claim: {error!r}") from error
