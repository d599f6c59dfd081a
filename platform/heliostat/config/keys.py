"""Is every key of a layer one that the schema has? If not, which one was meant?

This looks at keys and at what kind of thing stands below them, not at values: those are checked
once all layers are merged (`values`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from heliostat.config.layers import COMMAND_LINE, Layer, show, value_at
from heliostat.config.lines import KeyPath, Plain, dotted
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
    if raw is not None and _is_text(shape, raw, layer) and (value is not None or not raw.strip()):
        return raw
    return value


def _is_text(shape: Shape, raw: str, layer: Layer) -> bool:
    """Whether an unquoted scalar stands for its own text; `key=` on the command line is empty."""
    if isinstance(shape, Choice):
        return any(written == raw for written, _ in shape.values)
    return shape == Scalar(str) and (raw != "" or layer.source == COMMAND_LINE)
