"""The two backbones behind one name: a Llama-like transformer, and gated attention units.

Both have a `decoder` that gives hidden states under a position plan and an `output_weight`, so the
rest of the job does not ask which one it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from jobs.corpora.python_sources import VOCABULARY
from jobs.rerope.config import ModelConfig
from models.counting import lm_training_flops
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig, decoder_config_from, llama_config
from models.gau import GauLM
from models.gau_config import GauConfig, gau_training_flops
from models.hybrid_config import HybridConfig

Shape = DecoderConfig | GauConfig
LanguageModel = DecoderLM | GauLM


def shape_of(model: ModelConfig, *, length: int, base_factor: float) -> Shape:
    """The shape that the config describes; `base_factor` multiplies the rotary base."""
    if model.backbone == "gau":
        return GauConfig(
            vocab_size=VOCABULARY,
            width=model.width,
            layers=model.layers,
            expansion=model.expansion,
            head_width=model.gau_head_width,
            rotary_base=model.rotary_base * base_factor,
        )
    hybrid = None
    if model.sliding_window is not None and model.full_attention_layers is not None:
        hybrid = HybridConfig(model.sliding_window, model.full_attention_layers)
    return llama_config(
        vocab_size=VOCABULARY,
        width=model.width,
        layers=model.layers,
        heads=model.heads,
        key_value_heads=model.key_value_heads,
        feed_forward_width=model.feed_forward_width,
        max_positions=length,
        rotary_base=model.rotary_base * base_factor,
        hybrid=hybrid,
    )


def build(shape: Shape, generator: torch.Generator) -> LanguageModel:
    """A model with random initial weights."""
    if isinstance(shape, GauConfig):
        return GauLM(shape, generator)
    return DecoderLM(shape, generator)


def blank(shape: Shape) -> LanguageModel:
    """A model without numbers."""
    with torch.device("meta"):
        return build(shape, torch.Generator(device="cpu"))


def training_flops(shape: Shape, *, batch: int, tokens: int) -> int:
    """FLOPs of a forward and backward pass."""
    if isinstance(shape, GauConfig):
        return gau_training_flops(shape, batch=batch, tokens=tokens)
    return lm_training_flops(shape, batch=batch, tokens=tokens)


def shape_to_json(shape: Shape) -> dict[str, object]:
    """The shape as plain JSON."""
    backbone = "gau" if isinstance(shape, GauConfig) else "transformer"
    return {"backbone": backbone, "shape": asdict(shape)}


def shape_from_json(values: Mapping[str, Any]) -> Shape:
    """The shape that `shape_to_json` wrote."""
    if values["backbone"] == "gau":
        return GauConfig(**values["shape"])
    return decoder_config_from(values["shape"])
