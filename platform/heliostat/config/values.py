"""From plain values to what a config holds, and back.

Conversion is strict where a mistake could hide (a truth value is no number, 8.5 is no whole number)
and lenient where the meaning is certain: `1e3` is a whole number, `3` is a number, and a text field
takes an unquoted scalar as it was written.
"""

from __future__ import annotations

import math
import re

from heliostat.config.layers import COMMAND_LINE, DEFAULT, Provenance, show
from heliostat.config.lines import KeyPath, Plain, dotted
from heliostat.config.nearest import nearest_names
from heliostat.config.schema import (
    Choice,
    Either,
    Entries,
    Items,
    Nullable,
    Own,
    Scalar,
    Section,
    Shape,
    expected,
    fields_of,
    spell,
    walk,
)
from heliostat.errors import ConfigError

LARGEST = 2**63
"""Whole numbers stay below it, as they do in torch and Arrow."""


def build(shape: Shape, value: Plain, path: KeyPath, origin: Provenance) -> object:
    """The typed value of a complete, resolved plain value; dataclasses are constructed."""
    match shape:
        case Nullable(inner=inner):
            return None if value is None else build(inner, value, path, origin)
        case Section(kind=section) if isinstance(value, dict):
            return _build_section(section, value, path, origin)
        case Entries(value=inner) if isinstance(value, dict):
            return {key: build(inner, below, (*path, key), origin) for key, below in value.items()}
        case Items(item=item, is_tuple=is_tuple) if isinstance(value, list):
            items = [
                build(item, below, (*path, f"[{index}]"), origin)
                for index, below in enumerate(value)
            ]
            return tuple(items) if is_tuple else items
        case Either(options=options):
            return _build_either(options, value, path, origin)
        case Own(kind=own):
            try:
                return own.from_plain(value)
            except ValueError as error:
                raise _mismatch(shape, value, path, origin, f" ({error})") from None
        case Choice():
            return _build_choice(shape, value, path, origin)
        case Scalar(kind=kind):
            return _build_scalar(kind, value, path, origin)
    raise _mismatch(shape, value, path, origin)


def to_plain(shape: Shape, value: object) -> Plain:
    """The plain form of a config's value; `build` turns it back into an equal value."""
    match shape:
        case Nullable(inner=inner):
            return None if value is None else to_plain(inner, value)
        case Section(kind=section):
            return {
                name: to_plain(field.shape, getattr(value, name))
                for name, field in fields_of(section).items()
            }
        case Entries(value=inner) if isinstance(value, dict):
            return {key: to_plain(inner, below) for key, below in value.items()}
        case Items(item=item) if isinstance(value, (list, tuple)):
            return [to_plain(item, below) for below in value]
        case Either(options=options):
            return to_plain(next(option for option in options if _holds(option, value)), value)
        case Own(kind=own) if isinstance(value, own):
            return value.to_plain()
        case Choice(values=values):
            return next(written for written, held in values if _same(held, value))
        case Scalar(kind=kind) if isinstance(value, (bool, int, float, str)):
            return float(value) if kind is float else value
    raise TypeError(f"{value!r} is not {expected(shape)}")


def _build_section(
    kind: type, value: dict[str, Plain], path: KeyPath, origin: Provenance
) -> object:
    """Construct a dataclass; what its own checks refuse is told with the keys' origins."""
    arguments = {
        name: build(field.shape, value[name], (*path, name), origin)
        for name, field in fields_of(kind).items()
    }
    try:
        section: object = kind(**arguments)
    except (ValueError, ConfigError) as error:
        raise _refused(str(error), kind, value, path, origin) from error
    return section


def _refused(
    message: str, kind: type, value: dict[str, Plain], path: KeyPath, origin: Provenance
) -> ConfigError:
    """A cross-field error with the full names of the keys it mentions, and where they were set."""
    leaves = [
        below
        for below, shape in walk(Section(kind), value)
        if not isinstance(shape, (Section, Entries))
    ]
    named = [
        (dotted((*path, *below)), origin.where((*path, *below)))
        for below in leaves
        if _mentions(message, dotted(below))
    ]
    if not named:
        # The message is that of a shared check, which knows no sections; what the user just typed
        # is the likeliest cause.
        named = [
            (dotted((*path, *below)), COMMAND_LINE)
            for below in leaves
            if _mentions(message, below[-1]) and origin.where((*path, *below)) == COMMAND_LINE
        ]
    if len(named) == 1:
        key, where = named[0]
        return ConfigError(f"{where}: {key}: {message}")
    given = list(dict.fromkeys(where for _, where in named if where != DEFAULT))
    where = " and ".join(given) or origin.where(path)
    places = ", ".join(f"{key} from {where}" for key, where in named)
    return ConfigError(
        f"{where}: {dotted(path) or 'config'}: {message}{f' ({places})' if places else ''}"
    )


def _mentions(message: str, key: str) -> bool:
    """Whether a message names a key, as a word of its own."""
    return re.search(rf"(?<![\w.]){re.escape(key)}(?!\w|\.\w)", message) is not None


def _build_either(
    options: tuple[Shape, ...], value: Plain, path: KeyPath, origin: Provenance
) -> object:
    """The first option that takes the value, text last because it takes nearly everything."""
    for option in sorted(options, key=lambda option: option == Scalar(str)):
        try:
            return build(option, value, path, origin)
        except ConfigError:
            continue
    raise _mismatch(Either(options), value, path, origin)


def _build_choice(shape: Choice, value: Plain, path: KeyPath, origin: Provenance) -> object:
    for written, held in shape.values:
        if _same(written, value):
            return held
    texts = [written for written, _ in shape.values if isinstance(written, str)]
    near = nearest_names(value, texts) if isinstance(value, str) else []
    raise _mismatch(shape, value, path, origin, f"; the nearest is {near[0]}" if near else "")


def _build_scalar(
    kind: type[bool] | type[int] | type[float] | type[str],
    value: Plain,
    path: KeyPath,
    origin: Provenance,
) -> object:
    if kind is str:
        # A number or truth value gets here only by way of an interpolation.
        if isinstance(value, (bool, int, float, str)):
            return spell(value)
    elif isinstance(value, bool):
        if kind is bool:
            return value
    elif isinstance(value, int) and kind is not bool and abs(value) < LARGEST:
        return kind(value)
    elif isinstance(value, float) and not math.isnan(value):
        if kind is float:
            return value
        if kind is int and value.is_integer():
            return int(value)
    raise _mismatch(Scalar(kind), value, path, origin)


def _holds(shape: Shape, value: object) -> bool:
    """Whether a built value is of this shape; used to find a union's option."""
    match shape:
        case Scalar(kind=kind):
            return type(value) is kind
        case Choice(values=values):
            return any(_same(held, value) for _, held in values)
        case Own(kind=own):
            return isinstance(value, own)
        case Items(is_tuple=is_tuple):
            return isinstance(value, tuple if is_tuple else list)
        case Entries():
            return isinstance(value, dict)
        case Section(kind=kind):
            return isinstance(value, kind)
        case _:
            return False


def _same(left: object, right: object) -> bool:
    """Equality in which true is not 1."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def _mismatch(
    shape: Shape, value: Plain, path: KeyPath, origin: Provenance, hint: str = ""
) -> ConfigError:
    return ConfigError(
        f"{origin.where(path)}: {dotted(path)!r} must be {expected(shape)}, "
        f"but is {show(value)}{hint}"
    )
