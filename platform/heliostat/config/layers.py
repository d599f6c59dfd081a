"""The sources of a config in the order in which later ones win, and where each value came from.

A layer is one YAML file or one `key=value` of the command line. This module reads layers, refuses
keys that the schema does not know, and answers where a value was written. It converts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from heliostat.config.lines import KeyPath, Mark, Plain, dotted, parse_yaml, scalar
from heliostat.config.nearest import nearest_keys, one_of
from heliostat.config.schema import (
    Choice,
    Entries,
    Items,
    Nullable,
    Scalar,
    Section,
    Shape,
    expected,
    fields_of,
    walk,
)
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


def checked(layer: Layer, root: Section, known: Sequence[str]) -> Layer:
    """The layer with its text fields as they were written: an unquoted `no` or `1e3` is text there.

    `known` are all keys that could be meant.

    Raises `ConfigError` for a key that the schema does not have, and for a value that stands where
    a section belongs.
    """
    for path, value, parent in unknown_keys(root, layer.tree):
        typed = path
        if path == layer.key[: len(path)]:
            typed, value = layer.key, value_at(layer.tree, layer.key)
        start = f"{layer.where(path)}: there is no key {dotted(typed)!r} (given {show(value)})"
        raise ConfigError(f"{start}; {_way_out(typed, path, parent, known)}")
    tree = _as_written(root, layer.tree, (), layer)
    assert isinstance(tree, dict)
    return replace(layer, tree=tree)


def known_keys(root: Section, trees: Iterable[Mapping[str, Plain]]) -> list[str]:
    """All dotted keys of a schema, free entries as they are in the trees."""
    paths = (path for tree in trees for path, _ in walk(root, dict(tree)))
    return list(dict.fromkeys(dotted(path) for path in paths))


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


def unknown_keys(
    shape: Shape, value: Plain, path: KeyPath = ()
) -> Iterator[tuple[KeyPath, Plain, Shape]]:
    """Every key below `value` that `shape` does not allow, with the shape it stands in."""
    inner = shape.inner if isinstance(shape, Nullable) else shape
    if isinstance(inner, Section) and isinstance(value, dict):
        fields = fields_of(inner.kind)
        for name, below in value.items():
            if name in fields:
                yield from unknown_keys(fields[name].shape, below, (*path, name))
            else:
                yield (*path, name), below, inner
    elif isinstance(inner, Entries) and isinstance(value, dict):
        for name, below in value.items():
            yield from unknown_keys(inner.value, below, (*path, name))
    elif isinstance(inner, Items) and isinstance(value, list):
        for index, below in enumerate(value):
            yield from unknown_keys(inner.item, below, (*path, f"[{index}]"))
    elif isinstance(value, dict):
        for name, below in value.items():
            yield (*path, name), below, shape


def _way_out(typed: KeyPath, path: KeyPath, parent: Shape, known: Sequence[str]) -> str:
    """What to write instead of a key that does not exist."""
    above = dotted(path[:-1])
    if not isinstance(parent, Section):
        return f"{above!r} has no keys inside, it is {expected(parent)}"
    if near := nearest_keys(dotted(typed), known):
        return f"the nearest {'is' if len(near) == 1 else 'are'} {one_of(near)}"
    return f"{above or 'the top level'} has {', '.join(fields_of(parent.kind))}"


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


def _as_written(shape: Shape, value: Plain, path: KeyPath, layer: Layer) -> Plain:
    """The value with text where the schema wants text; refuses a scalar in a section's place."""
    if isinstance(shape, Nullable):
        return None if value is None else _as_written(shape.inner, value, path, layer)
    if isinstance(shape, Section) and isinstance(value, dict):
        fields = fields_of(shape.kind)
        return {
            name: _as_written(fields[name].shape, below, (*path, name), layer)
            for name, below in value.items()
        }
    if isinstance(shape, Entries) and isinstance(value, dict):
        return {
            name: _as_written(shape.value, below, (*path, name), layer)
            for name, below in value.items()
        }
    if isinstance(shape, Items) and isinstance(value, list):
        return [
            _as_written(shape.item, below, (*path, f"[{index}]"), layer)
            for index, below in enumerate(value)
        ]
    if isinstance(shape, (Section, Entries)):
        if value is None or (isinstance(value, str) and "${" in value):
            return value
        raise ConfigError(
            f"{layer.where(path)}: {dotted(path)!r} must be {expected(shape)}, but is {show(value)}"
        )
    raw = layer.marks[path].raw
    if raw is not None and _is_text(shape, raw, layer) and (value is not None or raw == ""):
        return raw
    return value


def _is_text(shape: Shape, raw: str, layer: Layer) -> bool:
    """Whether an unquoted scalar stands for its own text; `key=` on the command line is empty."""
    if isinstance(shape, Choice):
        return any(written == raw for written, _ in shape.values)
    return shape == Scalar(str) and (raw != "" or layer.source == COMMAND_LINE)


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
