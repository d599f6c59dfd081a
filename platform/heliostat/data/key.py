"""What a prepared table was made from: two preparations with the same key give the same table."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType

from heliostat.storage import Location, digest


@dataclass(frozen=True)
class PreparationKey:
    """Everything that the prepared rows depend on."""

    content: str
    """Fingerprint of the input: `Table.fingerprint`, or `content_of` for files."""
    code: str
    """Version of the code that transforms: `code_of` its modules."""
    tokenizer: str = ""
    """Fingerprint of the tokenizer, where there is one."""
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict, hash=False)
    """The settings that change the rows: limits, seeds, versions."""

    def digest(self) -> str:
        """Sixteen hexadecimal digits that stand for the key."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_of(files: Sequence[Location]) -> str:
    """The fingerprint of files: their names and contents, in the given order."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {digest(file)}\n".encode())
    return total.hexdigest()


def code_of(*modules: ModuleType) -> str:
    """The fingerprint of the source files of modules."""
    total = hashlib.sha256()
    for module in modules:
        total.update(f"{module.__name__}\n".encode())
        total.update(Path(inspect.getfile(module)).read_bytes())
    return total.hexdigest()
