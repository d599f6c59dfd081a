"""Fill in a config's defaults, and refuse it while a required value is missing.

A section's defaults come from its parent's default instance where there is one, else from its own
fields, one by one: a section need not be constructible from its defaults alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING

from heliostat.config.layers import DEFAULT, Layer, Provenance, value_at
from heliostat.config.lines import KeyPath, Plain, dotted
from heliostat.config.schema import (
    REQUIRED,
    Entries,
    Items,
    Nullable,
    Section,
    Shape,
    expected,
    fields_of,
    section_class,
    walk,
)
from heliostat.config.values import to_plain
from heliostat.errors import ConfigError


def completed(
    root: Section, tree: dict[str, Plain], layers: Sequence[Layer], known: Iterable[KeyPath] = ()
) -> tuple[dict[str, Plain], Provenance]:
    """The tree with every default filled in; refuses it while a required value is missing.

    `known` are the paths of defaults that are in the tree already.
    """
    defaults = set(known)
    complete = _with_defaults(root, tree, None, (), defaults)
    assert isinstance(complete, dict)
    origin = Provenance(tuple(layers), frozenset(defaults))
    missing = [
        (path, shape)
        for path, shape in walk(root, complete)
        if value_at(complete, path) == REQUIRED
    ]
    if missing:
        raise _missing(missing, origin)
    return complete, origin


def _with_defaults(
    shape: Shape, value: Plain, owner: object | None, path: KeyPath, defaults: set[KeyPath]
) -> Plain:
    """Fill in what was not given; its paths go to `defaults`.

    `owner` is the default instance of the section at hand, where its parent gives one.
    """
    if isinstance(shape, Nullable):
        if value is None:
            return None
        return _with_defaults(shape.inner, value, owner, path, defaults)
    if isinstance(shape, Section) and (value is None or isinstance(value, dict)):
        given = value or {}
        filled: dict[str, Plain] = {}
        for name, field in fields_of(shape.kind).items():
            below = (*path, name)
            default = field.default(owner)
            if name in given or (default is MISSING and isinstance(field.shape, Section)):
                kind = section_class(field.shape)
                instance = default if kind and isinstance(default, kind) else None
                filled[name] = _with_defaults(
                    field.shape, given.get(name), instance, below, defaults
                )
            else:
                filled[name] = REQUIRED if default is MISSING else to_plain(field.shape, default)
                defaults.add(below)
                defaults.update((*below, *path) for path, _ in walk(field.shape, filled[name]))
        return filled
    if isinstance(shape, Entries) and isinstance(value, dict):
        return {
            name: _with_defaults(shape.value, below, None, (*path, name), defaults)
            for name, below in value.items()
        }
    if isinstance(shape, Items) and isinstance(value, list):
        return [
            _with_defaults(shape.item, below, None, (*path, f"[{index}]"), defaults)
            for index, below in enumerate(value)
        ]
    return value


def _missing(keys: Sequence[tuple[KeyPath, Shape]], origin: Provenance) -> ConfigError:
    """The error that lists every key still without a value."""
    places = [origin.where(path) for path, _ in keys]
    where = next((place for place in places if place != DEFAULT), origin.layers[0].source)
    named = [
        f"{dotted(path)!r} ({expected(shape)}{f'; {place}' if place != DEFAULT else ''})"
        for (path, shape), place in zip(keys, places, strict=True)
    ]
    count = "1 key has" if len(keys) == 1 else f"{len(keys)} keys have"
    return ConfigError(
        f"{where}: {count} no value yet: {', '.join(named)}; "
        f"give it as {dotted(keys[0][0])}=VALUE on the command line or in a file after --config"
    )
