"""A pretrained decoder: what `heliostat.data.pretrained` finds, as this job needs it.

Whatever the source, the result is the same: a `DecoderConfig`, a tokenizer and a weights folder in
our own layout, converted once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from heliostat.data.pretrained import find_checkpoint, read_tensors, safetensors_of
from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.support_templates.tokenizer import TextCodec, load_codec
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
    decoder = _decoder_config(folder)
    codec = load_codec(folder)
    if decoder.vocab_size < codec.vocab_size:
        raise DataError(
            f"{folder} has embeddings for {decoder.vocab_size} tokens, but its tokenizer gives "
            f"{codec.vocab_size}: the model and the tokenizer do not belong together"
        )
    return PretrainedModel(decoder, codec, _convert(folder, decoder, cache))


def _decoder_config(folder: Path) -> DecoderConfig:
    from models.hf_config import from_hf_config

    path = folder / "config.json"
    if not path.exists():
        raise DataError(f"{folder} has no config.json: expected a model in Hugging Face layout")
    try:
        return from_hf_config(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{path} describes a model that is not supported: {error}") from error


def _convert(folder: Path, decoder: DecoderConfig, cache: Location) -> Location:
    from heliostat.train.weights import FILE, write_weights
    from models.hf_layout import from_hf

    files = safetensors_of(folder)
    stamp = json.dumps(
        [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    )
    target = cache / f"converted-{sha256(stamp.encode()).hexdigest()[:16]}"
    if not (target / FILE).exists():
        try:
            ours = from_hf(read_tensors(files), decoder)
        except ValueError as error:
            raise DataError(f"{folder}: {error}") from error
        float32 = {name: value.float().contiguous() for name, value in ours.items()}
        write_weights(target, float32, {"source": str(folder)})
    return target
