"""A small rotary model as a bundle of rerope, made in a moment."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from heliostat.runs.bundle import save_bundle
from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.storage import Location
from jobs.rerope.bundle import KIND
from jobs.rerope.shapes import shape_to_json
from models.decoder import DecoderLM
from models.decoder_config import llama_config
from models.positions import PositionScheme

TRAIN_LENGTH = 16


def write_rerope_bundle(folder: Path, *, name: str = "tiny", log_n: str = "none") -> Path:
    """Random weights; returns the folder."""
    shape = llama_config(
        vocab_size=256,
        width=32,
        layers=2,
        heads=4,
        key_value_heads=2,
        feed_forward_width=48,
        max_positions=TRAIN_LENGTH,
    )
    model = DecoderLM(shape, torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(4.0)
    recorded = {
        "name": name,
        "train_length": TRAIN_LENGTH,
        "rotary_base": shape.rotary_base,
        "layout": "half",
        "head_width": shape.head_width,
        "log_n": log_n,
        "training_scheme": asdict(PositionScheme("rope", log_n=log_n)),  # type: ignore[arg-type]
    }
    card = Card("Tiny", "Nothing.", [Input("n", "generated", "d", "l")], {}, "All.", "Here.", "No")
    save_bundle(
        Location.of(folder),
        weights=model.state_dict(),
        parts={"shape.json": shape_to_json(shape), "positions.json": recorded},
        card=card,
        kind=KIND,
        metadata={},
    )
    return folder
