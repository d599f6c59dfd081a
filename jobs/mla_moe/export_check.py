"""Whether transformers computes the same: a decoder written for it, and one read from it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from heliostat.storage import Location
from heliostat.train.weights import read_weights
from jobs.mla_moe.bundle import PROOF_LENGTH, PROOF_ROWS, export_decoder
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig
from models.hf_config import from_hf_config
from models.hf_layout import from_hf
from models.yarn import YarnConfig

YARN = YarnConfig(factor=40.0, original_positions=32, mscale=0.707, mscale_all_dim=0.707)
"""Stretched far enough for every part of it to show within the sequences compared."""


def export_difference(weights: Location, decoder: DecoderConfig, scratch: Path) -> dict[str, float]:
    """The largest difference of a logit, for a model that we write and for one that we read; and
    the largest logit."""
    model = DecoderLM(decoder, torch.Generator()).eval()
    model.load_state_dict(read_weights(weights))
    written = scratch / "written"
    written.mkdir()
    proof = export_decoder(model, written)
    return {
        "largest_logit_difference": max(
            float((proof.reference - proof.exported).abs().max()),
            _read_difference(written, scratch / "read"),
        ),
        "largest_logit": float(proof.reference.abs().max()),
    }


def _read_difference(written: Path, target: Path) -> float:
    """Let transformers save what it loaded, and read that."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32).eval()
    theirs.save_pretrained(target)
    decoder = from_hf_config(json.loads((target / "config.json").read_text(encoding="utf-8")))
    model = DecoderLM(decoder, torch.Generator()).eval()
    model.load_state_dict(from_hf(load_file(target / "model.safetensors"), decoder))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(decoder.vocab_size, (PROOF_ROWS, PROOF_LENGTH), generator=generator)
    with torch.inference_mode():
        return float((model(ids) - theirs(ids).logits).abs().max())
