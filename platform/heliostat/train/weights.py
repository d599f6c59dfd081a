"""Weights alone, as safetensors: what a training hands to the next stage or to a bundle."""

from __future__ import annotations

import itertools
import json
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from heliostat.errors import CheckpointError
from heliostat.storage import Location
from heliostat.train.engine import fp32_weights
from heliostat.train.shared_weights import SharedWeights

FILE = "model.safetensors"
ABOUT = "about.json"


@dataclass(frozen=True)
class _Wanted:
    """Weights that must come to storage under a name."""

    name: str
    tensors: Mapping[str, torch.Tensor]
    about: Mapping[str, object]
    written: Future[None]


class WeightsWriter:
    """Gathers whole fp32 weights on rank 0 and writes them in the background."""

    def __init__(self, folder: Location, rank: int, shared: SharedWeights | None) -> None:
        self._folder, self._shared = folder, shared
        self._rank = rank
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights-writer")
        self._lock = threading.Lock()
        self._wanted: dict[str, _Wanted] = {}

    def save(self, engine: Any, names: list[str], about: Mapping[str, object]) -> None:
        """Start to write the weights under each of the names. Called by all ranks."""
        tensors = {}
        shared = self._shared.whole() if self._shared is not None else ()
        for name, value in itertools.chain(fp32_weights(engine), shared):
            # Only rank 0 keeps what all ranks had to gather together.
            if self._rank == 0:
                tensors[name] = value
        if self._rank == 0:
            for name in names:
                self._begin(name, tensors, about)

    def finish(self) -> None:
        """Wait until everything asked for so far is written; what failed is tried once more.

        Raises what went wrong; the weights are kept for the next call.
        """
        with self._lock:
            wanted = list(self._wanted.values())
        for item in wanted:
            try:
                item.written.result()
            except Exception:
                again = self._begin(item.name, item.tensors, item.about, instead_of=item)
                if again is not None:
                    again.written.result()
                item = again or item
            with self._lock:
                if self._wanted.get(item.name) is item:
                    del self._wanted[item.name]

    def _begin(
        self,
        name: str,
        tensors: Mapping[str, torch.Tensor],
        about: Mapping[str, object],
        *,
        instead_of: _Wanted | None = None,
    ) -> _Wanted | None:
        """Queue a write; None if `instead_of` has given way to a newer one, which must stay."""
        with self._lock:
            if instead_of is not None and self._wanted.get(name) is not instead_of:
                return None
            future = self._pool.submit(write_weights, self._folder / name, tensors, about)
            self._wanted[name] = _Wanted(name, tensors, about, future)
            return self._wanted[name]


def write_weights(
    folder: Location, tensors: Mapping[str, torch.Tensor], about: Mapping[str, object]
) -> None:
    """Write `model.safetensors`, then `about.json`; replaces what was there."""
    with tempfile.TemporaryDirectory(prefix="heliostat-weights-") as scratch:
        path = Path(scratch) / FILE
        # Readers of Hugging Face folders ask which framework wrote them.
        save_file(dict(tensors), path, metadata={"format": "pt"})
        (folder / FILE).upload(path)
    (folder / ABOUT).write_text(json.dumps(dict(about), sort_keys=True))


def read_weights(folder: Location) -> dict[str, torch.Tensor]:
    """The tensors of a weights folder."""
    path = folder / FILE
    if not path.exists():
        raise CheckpointError(f"{folder.uri} holds no {FILE}")
    if path.is_local:
        return load_file(path.local_path)
    with tempfile.TemporaryDirectory(prefix="heliostat-weights-") as scratch:
        local = Path(scratch) / FILE
        path.download(local)
        return load_file(local)


def load_weights(model: nn.Module, folder: Location) -> None:
    """Load a weights folder into a model; every name and shape must match.

    Raises `CheckpointError` naming the first differences.
    """
    try:
        model.load_state_dict(read_weights(folder), strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {folder.uri} do not fit {type(model).__name__}: {error}"
        ) from error
