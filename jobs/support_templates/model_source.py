"""A pretrained decoder: what `heliostat.data.pretrained` finds, as this job needs it.

Whatever the source, the result is the same: a `DecoderConfig`, a tokenizer and a weights folder in
our own layout, converted once.
"""

from __future__ import annotations

from dataclasses import dataclass

from heliostat.data.pretrained import find_checkpoint
from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.corpora.tokenizer import TextCodec, load_codec
from jobs.pretrained.hf_folder import convert_weights, read_decoder_config
from models.decoder_config import DecoderConfig


@dataclass(frozen=True)
class PretrainedModel:
    """A checkpoint, converted."""

    decoder: DecoderConfig
    codec: TextCodec
    weights: Location


def open_pretrained(source: str, cache: Location) -> PretrainedModel:
    """Convert a checkpoint to our layout, or find it converted.

    Args:
        source: a folder in Hugging Face layout, `package:NAME` for a package that ships a GGUF
            file, or the name of a model on the hub.
        cache: where conversions are kept.
    """
    folder = find_checkpoint(source, cache)
    decoder = read_decoder_config(folder)
    codec = load_codec(folder)
    if decoder.vocab_size < codec.vocab_size:
        raise DataError(
            f"{folder} has embeddings for {decoder.vocab_size} tokens, but its tokenizer gives "
            f"{codec.vocab_size}: the model and the tokenizer do not belong together"
        )
    return PretrainedModel(decoder, codec, convert_weights(folder, decoder, cache))
