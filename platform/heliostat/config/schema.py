"""The shape of a config, read from dataclass annotations: what may stand where.

A shape is plain data, free of any values from files. Supported are `int`, `float`, `bool`, `str`,
`Literal`, `Enum`, fields with `metadata={"choices": (...)}`, `X | None` and other unions,
`list[X]`, `tuple[X, ...]`, `dict[str, X]`, nested dataclasses, and any class that reads and writes
itself (see `PlainType`). Anything else is refused when the schema is read: it is the programmer's
mistake.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import ClassVar, Protocol

from heliostat.config.lines import KeyPath, Plain

REQUIRED = "???"
"""How YAML says that a value must be given (OmegaConf's own sign)."""


class PlainType(Protocol):
    """A value with a notation of its own, such as `IntRange`."""

    expected: ClassVar[str]

    @classmethod
    def from_plain(cls, value: object) -> PlainType: ...

    def to_plain(self) -> Plain: ...


@dataclass(frozen=True)
class Scalar:
    """One number, truth value or text."""

    kind: type[bool] | type[int] | type[float] | type[str]


@dataclass(frozen=True)
class Choice:
    """One of a few values; `values` maps what is written to what the config holds."""

    values: tuple[tuple[str | int | float | bool, object], ...]


@dataclass(frozen=True)
class Items:
    """A list; a tuple when `is_tuple`."""

    item: Shape
    is_tuple: bool


@dataclass(frozen=True)
class Entries:
    """A section whose keys are free: `dict[str, X]`."""

    value: Shape


@dataclass(frozen=True)
class Either:
    """A union; `None` is stated by `Nullable` instead."""

    options: tuple[Shape, ...]


@dataclass(frozen=True)
class Nullable:
    """The inner shape or null."""

    inner: Shape


@dataclass(frozen=True)
class Own:
    """A class that reads and writes itself."""

    kind: type[PlainType]


@dataclass(frozen=True)
class Section:
    """A nested dataclass.

    One with a class attribute `IS_WHOLE` that is true is one value, though written as several keys:
    a later source replaces it rather than adding keys to it.
    """

    kind: type

    @property
    def is_whole(self) -> bool:
        """Whether a later source replaces it."""
        return bool(getattr(self.kind, "IS_WHOLE", False))


Shape = Scalar | Choice | Items | Entries | Either | Nullable | Own | Section


@dataclass(frozen=True)
class SchemaField:
    """One key of a section."""

    name: str
    shape: Shape
    field: dataclasses.Field[object]

    def default(self, owner: object | None) -> object:
        """The default value, `MISSING` when there is none.

        `owner` is the default instance of the enclosing section where the parent gives one. A
        factory that is the section's own class is not called: the section's fields have defaults
        of their own, and together they may be incomplete.
        """
        if owner is not None:
            return getattr(owner, self.name)
        if self.field.default is not MISSING:
            return self.field.default
        factory = self.field.default_factory
        if factory is MISSING:
            return MISSING
        section: object = section_class(self.shape)
        return MISSING if factory is section else factory()


@cache
def fields_of(kind: type) -> Mapping[str, SchemaField]:
    """The keys of a dataclass, in order; fields that it computes itself are no keys."""
    hints = typing.get_type_hints(kind)
    fields = {}
    for field in dataclasses.fields(kind):
        if field.init:
            where = f"{kind.__qualname__}.{field.name}"
            shape = _shape_of(hints[field.name], field.metadata.get("choices"), where)
            fields[field.name] = SchemaField(field.name, shape, field)
    return fields


def section_class(shape: Shape) -> type | None:
    """The dataclass of a section that may also be null; None for every other shape."""
    if isinstance(shape, Nullable):
        return section_class(shape.inner)
    return shape.kind if isinstance(shape, Section) else None


def walk(shape: Shape, tree: Plain, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Shape]]:
    """All keys, sections before what is in them; free entries and list items as in `tree`."""
    if isinstance(shape, Nullable):
        yield from walk(shape.inner, tree, path)
    elif isinstance(shape, Section):
        below = tree if isinstance(tree, dict) else {}
        for name, field in fields_of(shape.kind).items():
            yield (*path, name), field.shape
            yield from walk(field.shape, below.get(name), (*path, name))
    elif isinstance(shape, Entries) and isinstance(tree, dict):
        for name, value in tree.items():
            yield (*path, name), shape.value
            yield from walk(shape.value, value, (*path, name))
    elif isinstance(shape, Items) and isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from walk(shape.item, value, (*path, f"[{index}]"))


def expected(shape: Shape) -> str:
    """What a value of this shape is called in an error message."""
    match shape:
        case Scalar(kind=kind):
            names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
            return names[kind]
        case Choice(values=values):
            return "one of " + ", ".join(spell(written) for written, _ in values)
        case Items(item=item):
            return f"a list, each item {expected(item)}"
        case Entries(value=value):
            return f"a section of named entries, each {expected(value)}"
        case Either(options=options):
            return " or ".join(expected(option) for option in options)
        case Nullable(inner=inner):
            return f"{expected(inner)} or null"
        case Own(kind=kind):
            return kind.expected
        case Section(kind=kind):
            return f"a section with the keys {', '.join(fields_of(kind))}"


def type_name(shape: Shape) -> str:
    """A short name for tables: `int`, `float or null`, `fp32|bf16`, `list of int`."""
    match shape:
        case Scalar(kind=kind):
            return {bool: "true|false", int: "int", float: "float", str: "text"}[kind]
        case Choice(values=values):
            return "|".join(spell(written) for written, _ in values)
        case Items(item=item):
            return f"list of {type_name(item)}"
        case Entries(value=value):
            return f"entries of {type_name(value)}"
        case Either(options=options):
            return " or ".join(type_name(option) for option in options)
        case Nullable(inner=inner):
            return f"{type_name(inner)} or null"
        case Own(kind=kind):
            return kind.__name__
        case Section():
            return "section"


def spell(value: object) -> str:
    """A scalar as YAML writes it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shape_of(hint: object, choices: object, where: str) -> Shape:
    """The shape of an annotation; `choices` comes from the field's metadata."""
    if hint is None or hint is NoneType:
        raise TypeError(f"{where}: a field that can only be null says nothing")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (UnionType, typing.Union):
        some = [argument for argument in arguments if argument is not NoneType]
        options = tuple(_shape_of(argument, choices, where) for argument in some)
        inner = options[0] if len(options) == 1 else Either(options)
        return Nullable(inner) if len(some) < len(arguments) else inner
    if origin is list or (origin is tuple and arguments[1:] == (Ellipsis,)):
        return Items(_shape_of(arguments[0], choices, where), origin is tuple)
    if choices is not None:
        assert isinstance(choices, tuple)
        return Choice(tuple((value, value) for value in choices))
    if origin is typing.Literal:
        return Choice(tuple((value, value) for value in arguments))
    if origin is dict and arguments[0] is str:
        return Entries(_shape_of(arguments[1], None, where))
    if hint is bool or hint is int or hint is float or hint is str:
        return Scalar(hint)
    if isinstance(hint, type):
        if issubclass(hint, Enum):
            return Choice(tuple((_enum_text(member), member) for member in hint))
        if hasattr(hint, "from_plain") and hasattr(hint, "to_plain"):
            return Own(typing.cast(type[PlainType], hint))
        if dataclasses.is_dataclass(hint):
            return Section(hint)
    raise TypeError(f"{where}: a config cannot hold {hint}; see heliostat.config.schema")


def _enum_text(member: Enum) -> str:
    """What is written for an enum member: its value when that is text, else its name."""
    return member.value if isinstance(member.value, str) else member.name
