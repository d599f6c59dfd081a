"""What every key of a config means, where its value came from, and the config as annotated YAML.

Explanations are the one-line docstrings below the fields of the dataclasses, read from the source:
there is no second place in which a key is described.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache

from heliostat.config.dump import scalar_yaml
from heliostat.config.layers import value_at
from heliostat.config.lines import KeyPath, Plain, dotted
from heliostat.config.load import LoadedConfig
from heliostat.config.schema import (
    Entries,
    Items,
    Nullable,
    Section,
    Shape,
    fields_of,
    section_class,
    type_name,
    walk,
)
from heliostat.config.values import to_plain

COMMENT_COLUMN = 44
"""Where comments start, unless the value is longer."""


@dataclass(frozen=True)
class FieldRow:
    """One key of a config."""

    key: str
    type: str
    default: str | None
    """As YAML; None when a value must be given."""
    value: str | None
    """As YAML; None for sections, and without a loaded config."""
    origin: str | None
    """`file:line`, `command line` or `default`; None without a loaded config."""
    doc: str
    """The field's docstring."""


def field_table(kind: type, loaded: LoadedConfig[object] | None = None) -> list[FieldRow]:
    """All keys of a config class in order, with values and origins where a config was loaded."""
    tree = to_plain(Section(kind), loaded.config) if loaded else {}
    return [_row(kind, path, shape, tree, loaded) for path, shape in walk(Section(kind), tree)]


def annotated_yaml(loaded: LoadedConfig[object]) -> str:
    """The resolved config as YAML, each line with its origin and explanation as a comment."""
    root = Section(type(loaded.config))
    tree = to_plain(root, loaded.config)
    assert isinstance(tree, dict)
    lines = []
    for text, path, doc in _lines(root, tree, ()):
        origin = loaded.origins.get(dotted(path))
        notes = [note for note in (f"[{origin}]" if origin else "", doc) if note]
        lines.append(f"{text:<{COMMENT_COLUMN}}  # {' '.join(notes)}" if notes else text)
    return "\n".join(lines) + "\n"


@cache
def field_docs(kind: type) -> Mapping[str, str]:
    """The docstring below each field of a dataclass, on one line; inherited ones included."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):
            continue
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    docs[name] = " ".join(text.split())
    return docs


def _row(
    kind: type, path: KeyPath, shape: Shape, tree: Plain, loaded: LoadedConfig[object] | None
) -> FieldRow:
    default, doc = _default_and_doc(Section(kind), path, tree)
    is_section = isinstance(shape, Section)
    return FieldRow(
        key=dotted(path),
        type=type_name(shape),
        default=default,
        value=None if is_section or not loaded else scalar_yaml(value_at(tree, path)),
        origin=loaded.origins.get(dotted(path)) if loaded else None,
        doc=doc,
    )


def _default_and_doc(shape: Shape, path: KeyPath, tree: Plain) -> tuple[str | None, str]:
    """The default of the key at `path`, as its parents state it, and its docstring."""
    default: object = MISSING
    doc = ""
    for name in path:
        if isinstance(shape, Nullable):
            shape = shape.inner
        if isinstance(shape, Section):
            field = fields_of(shape.kind)[name]
            is_owner = isinstance(default, shape.kind)
            doc = field_docs(shape.kind).get(name, "")
            default = field.default(default if is_owner else None)
            shape = field.shape
        else:
            assert isinstance(shape, (Entries, Items))
            shape = shape.value if isinstance(shape, Entries) else shape.item
            default, doc = MISSING, ""
    if default is MISSING or (section_class(shape) and default is not None):
        return None, doc
    return scalar_yaml(to_plain(shape, default)), doc


def _lines(shape: Shape, tree: Plain, path: KeyPath) -> Iterator[tuple[str, KeyPath, str]]:
    """The YAML lines of a section, each with its key and docstring."""
    inner = shape.inner if isinstance(shape, Nullable) else shape
    assert isinstance(inner, (Section, Entries))
    assert isinstance(tree, dict)
    indent = "  " * len(path)
    for name, value in tree.items():
        if isinstance(inner, Section):
            below, doc = fields_of(inner.kind)[name].shape, field_docs(inner.kind).get(name, "")
        else:
            below, doc = inner.value, ""
        key = f"{indent}{scalar_yaml(name)}:"
        opened = below.inner if isinstance(below, Nullable) else below
        if isinstance(opened, (Section, Entries)) and isinstance(value, dict) and value:
            yield key, (*path, name), doc
            yield from _lines(opened, value, (*path, name))
        else:
            yield f"{key} {scalar_yaml(value)}", (*path, name), doc
