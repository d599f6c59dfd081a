"""The bundle of a language model: a folder that transformers reads too, with card and checksums.

Weights and config stay in Hugging Face's layout and precision, tokenizer and chat template lie
beside them, so nothing needs to be exported. What is ours is `language_model.json`: the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from heliostat.data.pretrained import read_tensors, safetensors_of
from heliostat.errors import BundleError, DataError
from heliostat.runs.bundle import Bundle, save_bundle
from heliostat.runs.card import Card
from heliostat.serve.generation.hf_codec import FILES, HfCodec
from heliostat.storage import Location
from jobs.pretrained.hf_folder import CONFIG_NAME, read_decoder_config
from models.decoder import DecoderLM
from models.decoder_config import DecoderConfig
from models.hf_config import from_hf_config
from models.hf_layout import from_hf

KIND = "language_model"
ABOUT = "language_model.json"


@dataclass(frozen=True)
class Checkpoint:
    """A folder in Hugging Face layout, read."""

    folder: Path
    decoder: DecoderConfig
    weights: Mapping[str, torch.Tensor]
    """In Hugging Face layout."""


@dataclass(frozen=True)
class LanguageModel:
    """A bundle, ready to generate."""

    name: str
    decoder: DecoderConfig
    model: DecoderLM
    codec: HfCodec


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint; raises `DataError` where it is none, or of a shape that is not served."""
    decoder = read_decoder_config(folder)
    try:
        weights = read_tensors(safetensors_of(folder))
        from_hf(weights, decoder)
    except ValueError as error:
        raise DataError(f"{folder} cannot be served: {error}") from error
    return Checkpoint(folder, decoder, weights)


def decoder_of(checkpoint: Checkpoint) -> DecoderLM:
    """The model of a checkpoint in float32."""
    return _filled(checkpoint.decoder, from_hf(checkpoint.weights, checkpoint.decoder))


def save_language_model(
    folder: Location, checkpoint: Checkpoint, name: str, card: Card, metadata: Mapping[str, object]
) -> str:
    """Write the bundle of a checkpoint; returns its version."""
    codec = HfCodec(checkpoint.folder)
    if codec.vocab_size > checkpoint.decoder.vocab_size:
        raise DataError(
            f"{checkpoint.folder} has embeddings for {checkpoint.decoder.vocab_size} tokens, but "
            f"its tokenizer gives {codec.vocab_size}: model and tokenizer do not belong together"
        )
    present = [file for file in FILES if (checkpoint.folder / file).is_file()]
    return save_bundle(
        folder,
        weights=checkpoint.weights,
        parts={
            ABOUT: {"name": name},
            CONFIG_NAME: checkpoint.folder / CONFIG_NAME,
            **{file: checkpoint.folder / file for file in present},
        },
        card=card,
        kind=KIND,
        metadata=metadata,
    )


def open_language_model(bundle: Bundle) -> LanguageModel:
    """A verified bundle as a model in float32."""
    if bundle.kind != KIND:
        raise BundleError(f"{bundle.source} is a bundle of {bundle.kind}, expected {KIND}")
    about: dict[str, Any] = bundle.json(ABOUT)
    try:
        decoder = from_hf_config(bundle.json(CONFIG_NAME))
        weights = from_hf(bundle.weights(), decoder)
    except ValueError as error:
        raise BundleError(f"{bundle.source} cannot be served: {error}") from error
    return LanguageModel(
        name=str(about["name"]),
        decoder=decoder,
        model=_filled(decoder, weights),
        codec=HfCodec(bundle.folder),
    )


def _filled(decoder: DecoderConfig, weights: Mapping[str, torch.Tensor]) -> DecoderLM:
    with torch.device("meta"):
        model = DecoderLM(decoder, torch.Generator(device="cpu"))
    model.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return model.requires_grad_(False).eval()
