"""Export of a bundle to plain Hugging Face format, done only when the logits are proven equal.

The job knows how its weights map to a Hugging Face model: the bundle's metadata name its exporter
as `module:function`. Only functions that a job package defines are called. The exporter writes
`config.json` and safetensors into the folder it is given, where the tokenizer and the card lie
already, loads the result as a user would, and returns logits of both models on the same input. The
comparison is made here; an export that fails it leaves nothing behind.
"""

from __future__ import annotations

import importlib
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from heliostat.config.jobs import ENTRY_POINTS
from heliostat.errors import BundleError, Fault, UserError
from heliostat.runs.bundle import CARD_NAME, Bundle, publish
from heliostat.runs.pickles import is_pickle
from heliostat.storage import Location

if TYPE_CHECKING:
    import torch

TOKENIZER_FOLDER = "tokenizer"
_EXPORTER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z]\w*")
_SAMPLING_S = 0.02


@dataclass(frozen=True)
class LogitProof:
    """What an exporter returns: logits of both models on the same input."""

    reference: torch.Tensor
    """Of the bundle's own model."""
    exported: torch.Tensor
    """Of the exported folder, loaded by transformers alone."""
    tolerance: float
    """The largest difference that counts as equal, as a share of `scale`: float32 rounds by what a
    logit is large."""

    @property
    def scale(self) -> float:
        """The largest logit in size, at least 1."""
        return max(1.0, float(self.reference.abs().max()))

    @property
    def allowed(self) -> float:
        """The largest absolute difference that counts as equal."""
        return self.tolerance * self.scale


@dataclass(frozen=True)
class ExportResult:
    """A proven export."""

    folder: Location
    max_abs_difference: float
    allowed: float
    """The largest difference that counts as equal."""
    logits: int
    """How many logits were compared."""
    peak_memory_bytes: int
    """Largest resident size of this process while it exported."""
    seconds: float


Exporter = Callable[[Bundle, Path], LogitProof]


def export_bundle(bundle: Bundle, target: Location) -> ExportResult:
    """Write a bundle in Hugging Face format to a new folder and prove its logits equal."""
    if target.exists() and (not target.is_dir() or target.list()):
        raise UserError(f"{target} exists; give a folder that is new or empty")
    exporter = find_exporter(bundle)
    if target.is_local:
        target.parent.make_dir()
    beside = target.parent.local_path if target.is_local else None
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=beside) as scratch:
        aside = Path(scratch) / "export"
        aside.mkdir()
        _copy_companions(bundle, aside)
        with _peak_memory() as peak:
            proof = exporter(bundle, aside)
            difference = _largest_difference(bundle, proof)
        _refuse_incomplete(aside)
        publish(aside, target)
    return ExportResult(
        folder=target,
        max_abs_difference=difference,
        allowed=proof.allowed,
        logits=proof.reference.numel(),
        peak_memory_bytes=peak.bytes,
        seconds=time.monotonic() - started,
    )


def find_exporter(bundle: Bundle) -> Exporter:
    """The exporter that a bundle's metadata name, if a job package defines it."""
    name = bundle.metadata.get("exporter")
    if name is None:
        raise BundleError(f"{bundle.source} names no exporter: its job has no Hugging Face form")
    if not isinstance(name, str) or not _EXPORTER.fullmatch(name):
        raise BundleError(f"{bundle.source} names the exporter {name!r}; expected module:function")
    module_name, _, function_name = name.partition(":")
    roots = _job_packages()
    if not any(module_name.startswith(f"{root}.") for root in roots):
        raise BundleError(
            f"{bundle.source} names the exporter {name}, which is in no job package "
            f"({', '.join(roots)}): it was not called"
        )
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except ImportError as error:
        raise BundleError(f"the exporter {name} cannot be imported: {error}") from error
    # A job module also holds what it imports; only what it defines itself is an exporter.
    if not callable(function) or getattr(function, "__module__", None) != module_name:
        raise BundleError(f"{module_name} defines no function {function_name} to export with")
    exporter: Exporter = function
    return exporter


def _job_packages() -> list[str]:
    """`jobs`, and the packages in which other repositories keep theirs."""
    others = {entry.module for entry in metadata.entry_points(group=ENTRY_POINTS)}
    return sorted({"jobs", *others})


def _copy_companions(bundle: Bundle, folder: Path) -> None:
    """Put the card and the tokenizer where Hugging Face looks for them."""
    for name in bundle.manifest.files:
        if name == CARD_NAME:
            shutil.copyfile(bundle.path(name), folder / CARD_NAME)
        elif name.startswith(f"{TOKENIZER_FOLDER}/"):
            file = folder / name.removeprefix(f"{TOKENIZER_FOLDER}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path(name), file)


def _largest_difference(bundle: Bundle, proof: LogitProof) -> float:
    """The largest absolute difference of the logits, if it is within the tolerance."""
    reference, exported = proof.reference.double(), proof.exported.double()
    if reference.shape != exported.shape or reference.numel() == 0:
        raise Fault(
            f"the export of {bundle.source} is wrong: its logits have the shape "
            f"{tuple(exported.shape)}, those of the bundle {tuple(reference.shape)}"
        )
    if not bool(reference.isfinite().all()):
        raise Fault(f"the logits of {bundle.source} are not all finite; nothing was written")
    difference = float((reference - exported).abs().max())
    # Written so that a NaN fails.
    if not difference <= proof.allowed:
        raise Fault(
            f"the export of {bundle.source} is wrong: its logits differ by {difference:.3g}, more "
            f"than {proof.allowed:.3g}; nothing was written"
        )
    return difference


def _refuse_incomplete(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    if not (folder / "config.json").exists() or not any(
        path.suffix == ".safetensors" for path in files
    ):
        raise Fault("the exporter wrote no config.json with safetensors beside it")
    pickles = [path.name for path in files if is_pickle(path)]
    if pickles:
        raise Fault(f"the exporter wrote pickles: {', '.join(pickles)}")


class _Peak:
    bytes = 0


@contextmanager
def _peak_memory() -> Iterator[_Peak]:
    """Sample the resident size of this process, since its own record never goes down."""
    import psutil

    process = psutil.Process()
    peak = _Peak()
    done = threading.Event()

    def sample() -> None:
        while True:
            peak.bytes = max(peak.bytes, process.memory_info().rss)
            if done.wait(_SAMPLING_S):
                return

    thread = threading.Thread(target=sample, name="peak-memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
