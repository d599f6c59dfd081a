"""From a job's dataclass, its YAML files and the command line to one frozen, checked config.

Later sources win: the dataclass's defaults, `jobs/NAME/config.yaml`, `jobs/NAME/sizes/SIZE.yaml`,
the files given with `--config`, and `key=value`. OmegaConf merges the sources and resolves
`${key}` between them (`merge`). Types and unknown keys are checked by `values` and `layers`, not by
OmegaConf's structured configs: those lose the line a value came from and cannot hold frozen
dataclasses, unions with lists, or `IntRange`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from heliostat.config.complete import completed
from heliostat.config.contract import JobConfig
from heliostat.config.dump import digest_of, to_yaml
from heliostat.config.jobs import JobEntry
from heliostat.config.keys import checked, known_keys, unknown_keys
from heliostat.config.layers import (
    COMMAND_LINE,
    Layer,
    read_file,
    read_override,
)
from heliostat.config.lines import dotted
from heliostat.config.merge import merge, resolve
from heliostat.config.nearest import nearest_names
from heliostat.config.schema import Section, walk
from heliostat.config.values import build, to_plain
from heliostat.errors import ConfigError

LAPTOP = "laptop"
"""The default size: `config.yaml` as it is, with no overlay."""

Config = TypeVar("Config", covariant=True)


@dataclass(frozen=True)
class LoadedConfig(Generic[Config]):
    """A config that passed every check, and how it came about."""

    config: Config
    resolved_yaml: str
    """Every key with its value; can be given back with `--config`."""
    digest: str
    """SHA-256 of all keys but those in `MAY_DIFFER`, in hexadecimal."""
    sources: tuple[str, ...]
    """The files, and the command line, in the order in which later ones win."""
    origins: Mapping[str, str]
    """For every key `file:line`, `command line` or `default`."""
    size: str
    """The size that was loaded."""


def load_config(
    job: JobEntry,
    size: str | None,
    overrides: Sequence[str],
    files: Sequence[Path] = (),
    instead_of: str | None = None,
) -> LoadedConfig[JobConfig]:
    """The config of a job.

    Args:
        job: Where the job lives.
        size: An overlay in the job's `sizes/`; None for the one in `overrides`, else the laptop's.
        overrides: `key=value` arguments; `size=NAME` is one of them.
        files: Overlays of the user's own, applied in order.
        instead_of: A top-level section that the files replace, rather than being laid over it.

    Raises:
        ConfigError: One sentence with file and line, key, value and the nearest valid choice.
    """
    named_size, keys = split_size(overrides)
    chosen = size or named_size or LAPTOP
    layers = [read_file(path) for path in (job.folder / "config.yaml", *_size_file(job, chosen))]
    if instead_of is not None:
        layers = [_without(layer, instead_of) for layer in layers]
    layers += [read_file(path) for path in files]
    layers += [read_override(argument) for argument in keys]
    return load_layers(job.config_class(), layers, chosen)


def load_layers(
    kind: type[Config], layers: Sequence[Layer], size: str = LAPTOP
) -> LoadedConfig[Config]:
    """Merge layers onto the dataclass `kind` and check the result."""
    root = Section(kind)
    known = known_keys(root, [layer.tree for layer in layers])
    layers = [checked(layer, root, known) for layer in layers]
    complete, origin = completed(root, merge(layers, root), layers)
    resolved = resolve(root, complete, origin)
    # A section that was itself an interpolation is known only now.
    for path, _, _ in unknown_keys(root, resolved):
        raise ConfigError(
            f"{origin.where(path)}: the section that is referred to has {path[-1]!r}, but there is "
            f"no key {dotted(path)!r}"
        )
    complete, origin = completed(root, resolved, layers, origin.defaults)
    config = build(root, complete, (), origin)
    assert isinstance(config, kind)
    plain = to_plain(root, config)
    assert isinstance(plain, dict)
    return LoadedConfig(
        config=config,
        resolved_yaml=to_yaml(plain),
        digest=digest_of(plain),
        sources=tuple(dict.fromkeys(layer.source for layer in layers)),
        origins={dotted(path): origin.where(path) for path, _ in walk(root, plain)},
        size=size,
    )


def _without(layer: Layer, section: str) -> Layer:
    """A layer without a top-level section."""
    tree = {key: value for key, value in layer.tree.items() if key != section}
    return replace(layer, tree=tree)


def split_size(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take `size=NAME` out of the overrides."""
    sizes = [text.partition("=")[2] for text in overrides if text.startswith("size=")]
    rest = [text for text in overrides if not text.startswith("size=")]
    if len(set(sizes)) > 1:
        raise ConfigError(f"{COMMAND_LINE}: size is given twice, as {' and as '.join(sizes)}")
    return (sizes[0] if sizes else None), rest


def _size_file(job: JobEntry, size: str) -> list[Path]:
    """The overlay of a size; none for the default size unless the job has one."""
    sizes = job.sizes()
    if size in sizes:
        return [job.folder / "sizes" / f"{size}.yaml"]
    if size == LAPTOP:
        return []
    known = [LAPTOP, *sizes]
    near = nearest_names(size, known)
    hint = f"; the nearest is {near[0]}" if near else ""
    raise ConfigError(
        f"{COMMAND_LINE}: job {job.name} has no size {size!r}, only {', '.join(known)}{hint}"
    )
