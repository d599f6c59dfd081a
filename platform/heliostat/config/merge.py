"""Lay the sources of a config over one another and resolve `${key}` between them, with OmegaConf.

Interpolation is between keys of the config only. OmegaConf's resolvers (`${oc.env:...}`) are
refused: a config says everything itself, so that the one saved with a run can be run again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationKeyError, OmegaConfBaseException

from heliostat.config.keys import known_keys
from heliostat.config.layers import Layer, Provenance, value_at
from heliostat.config.lines import KeyPath, Plain, dotted
from heliostat.config.nearest import nearest_keys, one_of
from heliostat.config.schema import Nullable, Section, walk
from heliostat.errors import ConfigError

_RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")
_REFERENCE = re.compile(r"Interpolation key '(.*)' not found")


def merge(layers: Sequence[Layer], root: Section) -> dict[str, Plain]:
    """All layers in one tree: sections and entries key by key, everything else replaced.

    Raises `ConfigError` for an interpolation that cannot be read.
    """
    merged = DictConfig({})
    for number, layer in enumerate(layers, start=1):
        _refuse_resolvers(layer, layer.tree, ())
        for path, shape in walk(root, layer.tree):
            inner = shape.inner if isinstance(shape, Nullable) else shape
            if isinstance(inner, Section) and inner.is_whole:
                _drop(merged, path, value_at(layer.tree, path))
        try:
            laid = OmegaConf.merge(merged, OmegaConf.create(layer.tree))
        except OmegaConfBaseException as error:
            origin = Provenance(tuple(layers[:number]), frozenset())
            raise _unresolved(error, layer.tree, origin, ()) from None
        assert isinstance(laid, DictConfig)
        merged = laid
    return _plain(merged, resolve=False)


def _drop(merged: DictConfig, path: KeyPath, given: Plain) -> None:
    """Take out what a whole section held before, where a layer gives it anew."""
    above = merged
    for name in path[:-1]:
        if not isinstance(above, DictConfig) or name not in above:
            return
        above = above[name]
    if isinstance(above, DictConfig) and path[-1] in above and isinstance(given, dict):
        del above[path[-1]]


def resolve(root: Section, tree: Mapping[str, Plain], origin: Provenance) -> dict[str, Plain]:
    """Replace every `${key}` by that key's value."""
    try:
        return _plain(OmegaConf.create(dict(tree)), resolve=True)
    except OmegaConfBaseException as error:
        raise _unresolved(error, dict(tree), origin, known_keys(root, [tree])) from None


def _plain(config: DictConfig, *, resolve: bool) -> dict[str, Plain]:
    container = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _unresolved(
    error: OmegaConfBaseException, tree: Plain, origin: Provenance, keys: Sequence[str]
) -> ConfigError:
    """The error for an interpolation that leads nowhere; `keys` are those it could mean."""
    key = str(error.full_key or "")
    path = tuple(re.sub(r"\[", ".[", key).split("."))
    reason = str(error.msg or error).splitlines()[0]
    if isinstance(error, GrammarParseError):
        reason = "write ${key}, or \\${ for the characters themselves"
    elif isinstance(error, InterpolationKeyError) and (found := _REFERENCE.search(reason)):
        reason = f"there is no key {found[1]!r}"
        if near := nearest_keys(found[1], keys):
            reason += f", the nearest is {one_of(near)}"
    return ConfigError(
        f"{origin.where(path)}: {key!r} is {value_at(tree, path)!r}, which cannot be "
        f"resolved: {reason}"
    )


def _refuse_resolvers(layer: Layer, tree: Plain, path: KeyPath) -> None:
    """Refuse `${name:...}` anywhere in a layer."""
    if isinstance(tree, dict):
        for name, below in tree.items():
            _refuse_resolvers(layer, below, (*path, name))
    elif isinstance(tree, list):
        for index, below in enumerate(tree):
            _refuse_resolvers(layer, below, (*path, f"[{index}]"))
    elif isinstance(tree, str) and _RESOLVER.search(tree):
        raise ConfigError(
            f"{layer.where(path)}: {dotted(path)!r} is {tree!r}, but only references to other keys "
            "such as ${seed} are allowed, so that a saved config says everything"
        )
