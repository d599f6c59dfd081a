"""A sweep, checked before Ray starts: which keys, which values, and the config of each trial.

Every key must be one of the job's own, every value must be one that the key can have, and every
cell of a grid must be a config that the job accepts. What is drawn at random may run into a
combination that the job refuses; such a trial is recorded with the reason and never started.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from heliostat.config.contract import JobConfig
from heliostat.config.dump import MAY_DIFFER, digest_of, to_yaml
from heliostat.config.keys import checked, known_keys
from heliostat.config.layers import Layer, Provenance
from heliostat.config.lines import KeyPath, Mark, Plain, dotted, parse_yaml
from heliostat.config.load import LoadedConfig, load_layers
from heliostat.config.nearest import nearest_names, one_of
from heliostat.config.schema import Entries, Items, Section, Shape, expected, walk
from heliostat.config.values import build, to_plain
from heliostat.errors import ConfigError
from heliostat.sweep.config import SweepConfig, Value, sweep_config
from heliostat.sweep.space import Space, Values

SECTION = "sweep"
CELLS_CHECKED = 200
"""Cells of a grid that are checked beforehand, which takes a few seconds; a later one that the job
refuses is recorded when its turn comes."""
MAY_CHANGE = ("budget", "parallel", "max_failures", "show", "second", "at_most")
"""Settings that may be others when a sweep goes on."""


@dataclass(frozen=True)
class SweepPlan:
    """Everything that is known of a sweep beforehand."""

    loaded: LoadedConfig[JobConfig]
    settings: SweepConfig
    space: Space
    base: Layer
    """The resolved config without its section `sweep`."""

    def config_of(self, values: Values) -> LoadedConfig[JobConfig]:
        """The config of a trial.

        Raises `ConfigError` when the job refuses the combination.
        """
        layers = [_layer(key, value, self.place_of(key)) for key, value in values.items()]
        return load_layers(type(self.loaded.config), [self.base, *layers], self.loaded.size)

    def place_of(self, key: str) -> str:
        """Where the values of a key were written."""
        for one, values in self.space.ranges.items():
            if key == one or key in values.along:
                return self.loaded.origins.get(f"{SECTION}.space.{one}", SECTION)
        return SECTION

    @property
    def trials(self) -> int:
        """How many trials there are at most."""
        budget = self.settings.budget.trials
        if self.settings.searcher != "grid":
            assert budget is not None
            return budget
        return min(self.space.size(), budget or self.space.size())

    def digest(self, bundle: str | None) -> str:
        """SHA-256 of all that decides the trials; the budget may grow when the sweep goes on.

        `bundle` is the version of the bundle that the sweep is over.
        """
        search = _decisive(self.settings)
        return digest_of({"config": self.loaded.digest, "search": search, "bundle": bundle})

    def proposal(self, number: int) -> Values:
        """The values of the trial of that number, where they do not depend on earlier results."""
        if self.settings.searcher != "grid":
            return self.space.drawn(self.settings.seed, number)
        return self.space.cell(number)


def make_plan(loaded: LoadedConfig[JobConfig]) -> SweepPlan:
    """Check the section `sweep` of a config.

    Raises `ConfigError`: one sentence with the nearest right name.
    """
    settings = sweep_config(loaded.config)
    ranges = {key: values for key, values in settings.space.items() if values is not None}
    if not ranges:
        raise ConfigError(
            "sweep.space is empty: name at least one key of the config and its values, as in "
            "sweep.space={fit.optimizer.lr: {log_uniform: [1e-4, 1e-2]}}"
        )
    plain = yaml.safe_load(loaded.resolved_yaml)
    plain.pop(SECTION)
    document = parse_yaml(to_yaml(plain), "config")
    assert isinstance(document.tree, dict)
    base = Layer("config", document.tree, document.marks)
    plan = SweepPlan(loaded, settings, Space(ranges), base)
    for key, values in ranges.items():
        _check_values(plan, key, values.listed or list(values.bounds or ()))
        for other, others in values.along.items():
            _check_values(plan, other, others)
    if settings.searcher == "grid":
        for cell in itertools.islice(plan.space.cells(), CELLS_CHECKED):
            try:
                plan.config_of(cell)
            except ConfigError as error:
                raise ConfigError(
                    f"the cell {spelled(cell)} of the grid is refused: {error}"
                ) from None
    return plan


def check_metrics(
    settings: SweepConfig, *, final: tuple[str, ...], evaluated: tuple[str, ...]
) -> None:
    """Refuse a metric that no trial reports.

    Args:
        settings: the sweep.
        final: what a finished trial reports.
        evaluated: what each evaluation reports; empty for trials that train nothing.
    """
    named = {
        "sweep.metric": [settings.metric],
        "sweep.second": list(settings.second),
        "sweep.show": settings.show,
        "sweep.at_most": list(settings.at_most),
    }
    for key, names in named.items():
        for name in names:
            _check_metric(key, name, final, f"a trial of kind {settings.trial} ends with")
    if settings.scheduler != "none":
        if not evaluated:
            raise ConfigError(
                f"sweep.scheduler is {settings.scheduler}, but a trial of kind {settings.trial} "
                "trains nothing, so there is nothing to stop early: set it to none"
            )
        said = f"sweep.scheduler is {settings.scheduler}, and an evaluation measures"
        _check_metric("sweep.metric", settings.metric, evaluated, said)


def check_keys(plan: SweepPlan, used: tuple[str, ...]) -> None:
    """Refuse a key that the trials of this kind do not look at: varied, it would change nothing."""
    for key in plan.space.keys:
        if not any(f"{key}.".startswith(f"{section}.") for section in used):
            raise ConfigError(
                f"{plan.place_of(key)}: sweep.space names {key!r}, but a trial of kind "
                f"{plan.settings.trial} only looks at {', '.join(used)}: choose another "
                "sweep.trial, or another key"
            )


def spelled(values: Mapping[str, object]) -> str:
    """Values as they would be typed."""
    return " ".join(f"{key}={_spell(value)}" for key, value in values.items())


def _spell(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_metric(key: str, name: str, known: tuple[str, ...], said: str) -> None:
    if name not in known:
        near = nearest_names(name, known)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise ConfigError(f"{key} names {name!r}, but {said} {', '.join(known)}{hint}")


def _check_values(plan: SweepPlan, key: str, values: Sequence[Value]) -> None:
    """Whether the key exists and can have each value."""
    root = Section(type(plan.loaded.config))
    where = plan.place_of(key)
    top = key.partition(".")[0]
    if top == SECTION or top in MAY_DIFFER:
        raise ConfigError(
            f"{where}: sweep.space names {key!r}, but {top} does not decide the result of a trial"
        )
    known = [name for name in known_keys(root, [plan.base.tree]) if not name.startswith(SECTION)]
    shapes = dict(walk(root, plan.base.tree))
    for value in values:
        layer = checked(_layer(key, value, where), root, known)
        path = tuple(key.split("."))
        shape = shapes.get(path)
        if shape is None or isinstance(shape, (Section, Entries, Items)):
            what = "no key of its own" if shape is None else expected(shape)
            raise ConfigError(
                f"{where}: sweep.space names {key!r}, which is {what}; only keys with one value "
                f"can be swept, such as {one_of(_leaves_below(path, shapes)[:3])}"
            )
        build(shape, value, path, Provenance((layer,), frozenset()))


def _leaves_below(path: KeyPath, shapes: Mapping[KeyPath, Shape]) -> list[str]:
    leaves = [
        dotted(other)
        for other, shape in shapes.items()
        if other[: len(path)] == path and not isinstance(shape, (Section, Entries, Items))
    ]
    return leaves or ["seed"]


def _layer(key: str, value: Value, where: str) -> Layer:
    """A value of the space as a source of the config, found again where the range was written."""
    path = tuple(key.split("."))
    source, _, line = where.rpartition(":")
    number = int(line) if source and line.isdigit() else 1
    marks = {path[:end]: Mark(number, None) for end in range(1, len(path) + 1)}
    tree: Plain = value
    for name in reversed(path):
        tree = {name: tree}
    assert isinstance(tree, dict)
    return Layer(source if source and line.isdigit() else where, tree, marks, path)


def _decisive(settings: SweepConfig) -> Plain:
    """The settings that decide which trials there are and how they are judged."""
    plain = to_plain(Section(SweepConfig), settings)
    assert isinstance(plain, dict)
    space = plain["space"]
    assert isinstance(space, dict)
    for values in space.values():
        if isinstance(values, dict) and not values["along"]:
            # What was begun before keys could go along goes on.
            del values["along"]
    return {name: value for name, value in plain.items() if name not in MAY_CHANGE}
