"""What `doctor` says about one thing it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    """What was looked at: `python`, `ray`, `disk`."""
    status: Status
    """`fail` keeps training from working, `warn` may."""
    detail: str
    """What was found."""
    remedy: str = ""
    """What to do about it; empty when ok."""
