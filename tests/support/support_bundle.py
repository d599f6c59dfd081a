"""Bundles of support_templates in a second: everything real but the weights, which are random."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from heliostat.runs.bundle import save_bundle
from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.storage import Location
from jobs.corpora.tokenizer import train_tokenizer
from jobs.support_templates.bundle import EXPORTER, KIND
from jobs.support_templates.contexts import ContextConfig
from jobs.support_templates.data.sim_config import SimConfig
from jobs.support_templates.data.support_sim import simulate, templates
from jobs.support_templates.label_map import LabelMap
from jobs.support_templates.redaction.redactor import REDACTOR_VERSION
from models.classifier import DecoderClassifier
from models.decoder import Decoder
from models.decoder_config import gpt_neox_config

SIMULATION = SimConfig(unlabelled_cases=40, labelled_cases=1, validation_cases=1, test_cases=1)
MAX_TOKENS = 96


def write_support_bundle(
    folder: Path,
    seed: int,
    *,
    leave_out: int = 0,
    width: int = 32,
    layers: int = 1,
    redactor_version: str = REDACTOR_VERSION,
    context_more: Mapping[str, object] | None = None,
) -> str:
    """Write a bundle whose weights come from a seed; returns its version.

    Args:
        folder: where.
        seed: of the weights.
        leave_out: labels that this version does not have.
        width: of the decoder.
        layers: of the decoder.
        redactor_version: that it says it was made with.
        context_more: settings of the context, besides.
    """
    texts = [
        message.text for case in simulate(SIMULATION, "unlabelled") for message in case.messages
    ]
    codec = train_tokenizer(texts, 400)
    known = templates(SIMULATION)
    labels = sorted(template.template_id for template in known)[leave_out:]
    label_map = LabelMap(tuple(labels), datetime(2026, 1, 1, tzinfo=UTC))
    decoder = gpt_neox_config(
        vocab_size=codec.vocab_size, width=width, layers=layers, heads=4, max_positions=128
    )
    generator = torch.Generator().manual_seed(seed)
    model = DecoderClassifier(Decoder(decoder, generator), len(labels), generator)
    settings = {
        "decoder": asdict(decoder),
        "pooling": "last",
        "context": {**asdict(ContextConfig(max_tokens=MAX_TOKENS)), **(context_more or {})},
        "temperature": 1.5,
        "redactor_version": redactor_version,
        "presidio": False,
        "split_salt": "salt",
        "top5_at_release": 0.9,
    }
    return save_bundle(
        Location.of(folder),
        weights=model.state_dict(),
        parts={
            "classifier.json": settings,
            "label_map.json": label_map.to_json(),
            "templates.json": {one.template_id: _json(one) for one in known},
            "tokenizer/tokenizer.json": codec.json_text,
        },
        card=Card(
            title="Reply template classifier",
            what="Random weights, for tests.",
            inputs=[Input("conversations", "generated", "support_sim", "none")],
            metrics={"top5": 0.1},
            limits="It knows nothing.",
            how_made="by a test",
            licence="Apache-2.0",
        ),
        kind=KIND,
        metadata={"run": f"test-{seed}", "config": "0" * 12, "exporter": EXPORTER},
    )


def _json(template: object) -> dict[str, object]:
    return json.loads(json.dumps(asdict(template), default=lambda moment: moment.isoformat()))  # type: ignore[call-overload,no-any-return]
