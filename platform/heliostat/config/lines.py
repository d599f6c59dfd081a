"""YAML as plain values together with the line each came from.

It is not a general YAML loader: one document, text keys, no tags, no duplicate keys. Scalars follow
YAML 1.2's core schema with two additions that people rely on, `1e-5` as a number and yes/no/on/off
as booleans; times, octal and base-60 numbers are text. The text of a plain scalar is kept, so that
a text field given `no` or `1e3` gets what was written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from heliostat.errors import ConfigError

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
"""What YAML can say."""
KeyPath = tuple[str, ...]
"""Where a value sits: section names, and `[i]` for list items."""

DEEPEST = 64
"""Levels of nesting; more is a mistake."""

MOST_VALUES = 100_000
"""Values in one file, aliases written out; more is a mistake."""

NULLS = ("null", "Null", "NULL", "~", "")
TRUES = ("true", "yes", "on")
_BOOL = re.compile(
    r"^(?:true|True|TRUE|false|False|FALSE|[yY]es|YES|[nN]o|NO|[oO]n|ON|[oO]ff|OFF)$"
)
INT = re.compile(r"^[-+]?[0-9](?:_?[0-9])*$|^0x[0-9a-fA-F]+$")
FLOAT = re.compile(
    r"^[-+]?(?:[0-9](?:_?[0-9])*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$"
    r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)


@dataclass(frozen=True)
class Mark:
    """Where a value was written, and how."""

    line: int
    """Counted from 1."""
    raw: str | None
    """The text of a plain scalar as written; None for quoted text, lists and sections."""


@dataclass(frozen=True)
class Document:
    """A parsed YAML text."""

    tree: Plain
    marks: Mapping[KeyPath, Mark]


def dotted(path: KeyPath) -> str:
    """`("a", "b", "[0]")` as `a.b[0]`."""
    return ".".join(path).replace(".[", "[")


def parse_yaml(text: str, source: str) -> Document:
    """Parse one YAML document; `source` names it in errors.

    Raises `ConfigError` with the line when it is not YAML, or not the YAML described above.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: this is not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is nested too deeply"
        raise ConfigError(f"{source}: this is not valid YAML: {reason}") from None
    marks: dict[KeyPath, Mark] = {}
    tree = _plain(node, (), source, marks) if node is not None else None
    return Document(tree, marks)


def scalar(text: str) -> Plain:
    """The value of a plain (unquoted) scalar."""
    if text in NULLS:
        return None
    if _BOOL.match(text):
        return text.lower() in TRUES
    if INT.match(text) and len(text) < 4000:
        return int(text, 16 if text.startswith("0x") else 10)
    if FLOAT.match(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _plain(node: yaml.Node, path: KeyPath, source: str, marks: dict[KeyPath, Mark]) -> Plain:
    """The value of a node; its line and those of everything below go to `marks`."""
    line = node.start_mark.line + 1
    where = f"{source}:{line}"
    if len(path) > DEEPEST:
        raise ConfigError(f"{where}: more than {DEEPEST} levels of nesting, or an alias of itself")
    if len(marks) > MOST_VALUES:
        raise ConfigError(f"{where}: more than {MOST_VALUES} values in one file")
    if isinstance(node, yaml.ScalarNode):
        is_plain = node.style is None
        marks[path] = Mark(line, node.value if is_plain else None)
        return scalar(node.value) if is_plain else str(node.value)
    marks[path] = Mark(line, None)
    if isinstance(node, yaml.SequenceNode):
        return [
            _plain(item, (*path, f"[{index}]"), source, marks)
            for index, item in enumerate(node.value)
        ]
    assert isinstance(node, yaml.MappingNode)
    tree: dict[str, Plain] = {}
    for key_node, value_node in node.value:
        key = _key(key_node, source)
        if key in tree:
            first = marks[(*path, key)].line
            raise ConfigError(
                f"{source}:{key_node.start_mark.line + 1}: the key {dotted((*path, key))!r} "
                f"is given twice, first in line {first}"
            )
        tree[key] = _plain(value_node, (*path, key), source, marks)
        marks[(*path, key)] = Mark(key_node.start_mark.line + 1, marks[(*path, key)].raw)
    return tree


def _key(node: yaml.Node, source: str) -> str:
    """A mapping's key, which must be text."""
    where = f"{source}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{where}: a key must be text, but this one is a list or a section")
    return str(node.value)
