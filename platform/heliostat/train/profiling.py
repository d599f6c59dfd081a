"""A torch profiler trace of a few early steps, by one switch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import torch

from heliostat.storage import Location

SKIPPED_STEPS = 3
PROFILED_STEPS = 3


class Profiler:
    """Profiles steps 4 to 6 of this start into `trace.json` (Chrome and Perfetto read it)."""

    def __init__(self, folder: Location, is_on: bool) -> None:
        self._folder = folder
        self._profile: torch.profiler.profile | None = None
        if is_on:
            self._profile = torch.profiler.profile(
                schedule=torch.profiler.schedule(
                    wait=SKIPPED_STEPS - 1, warmup=1, active=PROFILED_STEPS, repeat=1
                ),
                on_trace_ready=self._write,
                record_shapes=True,
                profile_memory=True,
            )

    def __enter__(self) -> Profiler:
        if self._profile is not None:
            self._profile.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._profile is not None:
            self._profile.stop()

    def step(self) -> None:
        """Tell the profiler that an optimiser step is over."""
        if self._profile is not None:
            self._profile.step()

    def _write(self, profile: torch.profiler.profile) -> None:
        with tempfile.TemporaryDirectory(prefix="heliostat-profile-") as scratch:
            trace = Path(scratch) / "trace.json"
            profile.export_chrome_trace(str(trace))
            (self._folder / "trace.json").upload(trace)
