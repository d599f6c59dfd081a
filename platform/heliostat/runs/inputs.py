"""The inputs of a result, each marked as real or generated; cards, claims and reports list them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Input:
    """A data set, corpus or pretrained model that a result rests on."""

    name: str
    origin: Literal["real", "generated"]
    """Generated: made by a program of ours, however lifelike."""
    description: str
    licence: str
