"""The sources of a config in the order in which later ones win, and where each value came from.

A layer is one YAML file or one `key=value` of the command line. This module reads layers and
answers where a value was written. It knows no schema and converts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from heliostat.config.lines import KeyPath, Mark, Plain, dotted, parse_yaml, scalar
from heliostat.errors import ConfigError

COMMAND_LINE = "command line"
DEFAULT = "default"
HUGE = 10**30
"""Whole numbers beyond it are not written out in messages."""


@dataclass(frozen=True)
class Layer:
    """One source: its values as a tree, and the line of each."""

    source: str
    """A path as shown to the user, or `COMMAND_LINE`."""
    tree: dict[str, Plain]
    marks: Mapping[KeyPath, Mark]
    key: KeyPath = ()
    """The key that an override names."""

    def where(self, path: KeyPath) -> str:
        """`file:line`, or just the command line."""
        if self.source == COMMAND_LINE:
            return self.source
        return f"{self.source}:{self.marks[path].line}"


@dataclass(frozen=True)
class Provenance:
    """All layers of a config, and which of its keys none of them gave."""

    layers: tuple[Layer, ...]
    defaults: frozenset[KeyPath]

    def where(self, path: KeyPath) -> str:
        """Where the value at `path` was written; `DEFAULT` when it was not."""
        if path in self.defaults:
            return DEFAULT
        layer, found = self._find(path)
        return layer.where(found) if layer else DEFAULT

    def _find(self, path: KeyPath) -> tuple[Layer | None, KeyPath]:
        """The last layer that gave `path`, or else what it is in (an interpolated section)."""
        for end in range(len(path), 0, -1):
            for layer in reversed(self.layers):
                if path[:end] in layer.marks:
                    return layer, path[:end]
        return None, ()


def shown_path(path: Path) -> str:
    """A path for messages: relative to the current folder when it is inside."""
    path = path.absolute()
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def read_file(path: Path) -> Layer:
    """A YAML file as a layer."""
    shown = shown_path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{shown}: there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{shown}: this is a folder, but a YAML file is expected") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown}: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{shown}: it cannot be read: {error.strerror}") from None
    document = parse_yaml(text, shown)
    if document.tree is None:
        return Layer(shown, {}, {})
    if not isinstance(document.tree, dict):
        raise ConfigError(f"{shown}:1: a config is a section of `key: value` lines, not a list")
    return Layer(shown, document.tree, document.marks)


def read_override(argument: str) -> Layer:
    """A `key=value` of the command line as a layer."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{COMMAND_LINE}: {argument!a} is not UTF-8 text") from None
    key, equals, text = argument.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(
            f"{COMMAND_LINE}: {argument!r} is not an override; write key=value, without spaces"
        )
    path = tuple(key.split("."))
    value, marks = _override_value(text, path)
    tree: Plain = value
    for name in reversed(path):
        tree = {name: tree}
    assert isinstance(tree, dict)
    return Layer(COMMAND_LINE, tree, marks, path)


def show(value: object) -> str:
    """A value for an error message, cut to a readable length."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float() if math.isnan(value):
            return "not a number (nan)"
        case int() if abs(value) > HUGE:
            return "a huge number"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {_cut(repr(value))}"
        case list():
            return f"the list {_cut(str(value))}"
        case _:
            return f"the section {_cut(str(value))}"


def value_at(tree: Plain, path: KeyPath) -> Plain:
    """The value at a path; None where the path leads nowhere."""
    for name in path:
        if isinstance(tree, dict):
            tree = tree.get(name)
        elif isinstance(tree, list) and name.startswith("["):
            tree = tree[int(name[1:-1])]
        else:
            return None
    return tree


def _override_value(text: str, path: KeyPath) -> tuple[Plain, dict[KeyPath, Mark]]:
    """The value of an override, and marks for its key, the sections above, and all inside.

    Lists, sections and quoted text are YAML; everything else is one scalar, as typed.
    """
    marks = {path[:end]: Mark(1, None) for end in range(1, len(path))}
    if not text.lstrip().startswith(("[", "{", "'", '"')):
        marks[path] = Mark(1, text)
        value = scalar(text.strip())
        return (text if isinstance(value, str) else value), marks
    try:
        document = parse_yaml(text, COMMAND_LINE)
    except ConfigError:
        raise ConfigError(
            f"{COMMAND_LINE}: the value of {dotted(path)!r} is not valid YAML: {_cut(repr(text))}; "
            "put the whole override in single quotes to keep it from the shell"
        ) from None
    marks.update({(*path, *below): mark for below, mark in document.marks.items()})
    return document.tree, marks


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
