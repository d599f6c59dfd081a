"""Copies of a bundle of support_templates that benchmarks need: deeper, or broken.

Batching is worth most where one item leaves the processor idle. On a CPU that is a narrow and deep
model: an operation on one short context costs about what it costs on sixteen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from heliostat.runs.bundle import load_bundle, save_bundle
from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.storage import Location
from jobs.support_templates.bundle import open_classifier
from models.classifier import DecoderClassifier
from models.decoder import Decoder
from models.decoder_config import gpt_neox_config


def deeper(bundle: str, layers: int, folder: Path, width: int | None = None) -> str:
    """Write a copy with so many layers, and as wide, into a new folder; returns its path."""
    classifier = open_classifier(load_bundle(bundle))
    own = classifier.model.decoder.config
    config = gpt_neox_config(
        vocab_size=own.vocab_size,
        width=width or own.width,
        layers=layers,
        heads=own.heads,
        max_positions=own.max_positions,
    )
    generator = torch.Generator().manual_seed(0)
    labels = len(classifier.label_map)
    model = DecoderClassifier(Decoder(config, generator), labels, generator)
    return _copy(bundle, folder, model, {"decoder": asdict(config)})


def unloadable(bundle: str, folder: Path) -> str:
    """Write a copy that verifies, and that the endpoint refuses when it opens it."""
    model = open_classifier(load_bundle(bundle)).model
    return _copy(bundle, folder, model, {"redactor_version": "0"})


def _copy(
    bundle: str, folder: Path, model: DecoderClassifier, settings: Mapping[str, object]
) -> str:
    found = load_bundle(bundle)
    text = {
        name: found.path(name).read_text(encoding="utf-8")
        for name in ("label_map.json", "templates.json", "tokenizer/tokenizer.json")
    }
    save_bundle(
        Location.of(folder),
        weights=model.state_dict(),
        parts={**text, "classifier.json": {**found.json("classifier.json"), **settings}},
        card=Card(
            title="Reply template classifier",
            what="Made for measuring; its suggestions mean nothing.",
            inputs=[Input("conversations", "generated", "support_sim", "none")],
            metrics={"labels": float(model.head.weight.shape[0])},
            limits="It knows nothing.",
            how_made="by a benchmark",
            licence="Apache-2.0",
        ),
        kind=found.kind,
        metadata=dict(found.metadata),
    )
    return str(folder)
