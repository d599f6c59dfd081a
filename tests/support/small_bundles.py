"""Bundles that are made in a moment, for tests of what happens to bundles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from heliostat.runs.bundle import Part, save_bundle
from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.storage import Location


def small_bundle(
    folder: Location,
    *,
    metrics: Mapping[str, float] | None = None,
    labels: Sequence[str] = ("a", "b"),
    metadata: Mapping[str, object] | None = None,
    weight: float = 0.0,
    parts: Mapping[str, Part] | None = None,
) -> str:
    """Write a bundle of a few bytes; returns its version."""
    card = Card(
        title="Demo",
        what="Nothing.",
        inputs=[Input("numbers", "generated", "Four numbers made here.", "none")],
        metrics={"top@1": 0.5, "loss": 1.25} if metrics is None else metrics,
        limits="Everything.",
        how_made="By a test.",
        licence="Apache-2.0",
    )
    return save_bundle(
        folder,
        weights={"w": torch.full((4,), weight)},
        parts={
            "label_map.json": {"labels": list(labels)},
            "words.txt": " ".join(labels),
            **(parts or {}),
        },
        card=card,
        kind="demo-kind",
        metadata=metadata or {},
    )
