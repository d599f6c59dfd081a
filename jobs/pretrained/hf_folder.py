"""A folder in Hugging Face layout: the shape it describes, and its weights in our layout.

Conversions are kept, so a checkpoint is converted once.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from heliostat.data.pretrained import read_tensors, safetensors_of
from heliostat.errors import DataError
from heliostat.storage import Location
from models.decoder_config import DecoderConfig

CONFIG_NAME = "config.json"


def read_decoder_config(folder: Path) -> DecoderConfig:
    """The shape; `DataError` where there is none, or one that is not supported."""
    from models.hf_config import from_hf_config

    path = folder / CONFIG_NAME
    if not path.exists():
        raise DataError(f"{folder} has no {CONFIG_NAME}: expected a model in Hugging Face layout")
    try:
        return from_hf_config(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{path} describes a model that is not supported: {error}") from error


def convert_weights(folder: Path, decoder: DecoderConfig, cache: Location) -> Location:
    """A weights folder in `cache` with what `folder` holds, in float32."""
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
