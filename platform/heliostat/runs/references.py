"""How a bundle is named: by its place, or by a model's name with an alias or a version number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from heliostat.errors import UserError
from heliostat.runs.manifest import MANIFEST_NAME
from heliostat.storage import Location

CHAMPION = "champion"
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ALIAS = re.compile(r"[a-z][a-z0-9_-]*")
_NUMBER = re.compile(r"[0-9]+")
_TAKEN = re.compile(r"latest|v[0-9]+")


@dataclass(frozen=True)
class ModelReference:
    """`JOB`, `JOB@ALIAS` or `JOB:NUMBER`."""

    model: str
    alias: str | None
    number: int | None

    def __str__(self) -> str:
        if self.number is not None:
            return f"{self.model}:{self.number}"
        return self.model if self.alias is None else f"{self.model}@{self.alias}"


def parse_reference(text: str) -> Location | ModelReference:
    """What a user typed: a URI, a path, or the name of a model.

    A path has a slash or names a folder that holds a bundle, which wins over a model of that name.
    """
    if "/" in text or text in ("", ".", "..", "~"):
        return Location.of(text)
    if (Path(text) / MANIFEST_NAME).is_file():
        return Location.of(Path(text))
    model, at, alias = text.partition("@")
    if at:
        if _NUMBER.fullmatch(alias):
            raise UserError(f"{text!r}: a version is written {model}:{alias}, an alias after an @")
        return ModelReference(checked_model(model), checked_alias(alias), None)
    model, colon, number = text.partition(":")
    if colon:
        if not _NUMBER.fullmatch(number):
            raise UserError(
                f"{text!r}: after the colon a version number is expected, as in {model}:3; an "
                f"alias is written {model}@{number or CHAMPION}"
            )
        return ModelReference(checked_model(model), None, int(number))
    return ModelReference(checked_model(model), None, None)


def checked_model(name: str) -> str:
    """The name, if a model can have it."""
    if not _MODEL.fullmatch(name):
        raise UserError(
            f"{name!r} is neither a bundle's folder nor the name of a model (JOB, JOB@ALIAS or "
            "JOB:NUMBER)"
        )
    return name


def checked_alias(name: str) -> str:
    """The alias, if a model can have it."""
    if not _ALIAS.fullmatch(name) or _TAKEN.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be an alias: use lower-case letters, digits, dashes and underscores, "
            "beginning with a letter (latest, v1, v2, ... are taken)"
        )
    return name
