"""Named tensors in a safetensors file, tied ones included.

safetensors refuses tensors that share memory. Here a tensor that is the same memory under a second
name (tied embeddings) is stored once, and its other names are kept in the file's metadata, so that
reading gives every name back; tensors that overlap in any other way are stored apart.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WEIGHTS_NAME = "model.safetensors"
_TIED = "heliostat.tied"


def write_weights(weights: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write named tensors."""
    from safetensors.torch import save_file

    kept: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    owners: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in weights.items():
        memory = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and memory in owners:
            tied[name] = owners[memory]
            continue
        owners[memory] = name
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        is_alone = storage.nbytes() == plain.nbytes and storage.data_ptr() not in storages
        kept[name] = plain if is_alone else plain.clone()
        storages.add(storage.data_ptr())
    save_file(kept, file, metadata={"format": "pt", _TIED: json.dumps(tied)})
    _settle_header(file)


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Read named tensors, tied names included."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as source:
        tensors = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
        tied = json.loads((source.metadata() or {}).get(_TIED, "{}"))
    return tensors | {name: tensors[owner] for name, owner in tied.items()}


def _settle_header(file: Path) -> None:
    """Put the header's metadata in order: safetensors 0.8 writes them in a random one, and equal
    weights must make equal files."""
    with file.open("r+b") as content:
        (length,) = struct.unpack("<Q", content.read(8))
        header = json.loads(content.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        if len(text) > length:
            raise ValueError(f"the header of {file} grew from {length} to {len(text)} bytes")
        content.seek(8)
        content.write(text.ljust(length))
