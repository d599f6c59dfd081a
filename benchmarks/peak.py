"""How far a call raises the resident memory of this process; Linux only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def added_peak_mib(call: Callable[[], object]) -> float:
    """MiB between the resident memory before a call and its peak during the call."""
    # What loading things has left behind may be a higher peak; Linux forgets it on this word.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _peak_mib()
    call()
    return _peak_mib() - before


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
