"""A config written down: as YAML that can be read back, as a digest, and by what differs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping

import yaml

from heliostat.config.lines import FLOAT, INT, KeyPath, Plain, dotted

MAY_DIFFER = ("resources", "tracker", "out", "serve", "generation", "sweep")
"""Top-level keys that do not decide a result: they may change when a run goes on. (A sweep's own
digest holds its section `sweep`.)"""

LATER = ("batch_ramp",)
"""Keys that came after runs had been begun. As null they change nothing and do not count, so that
such runs go on."""

_BREAKS = frozenset("\x85\u2028\u2029\ufeff")
_REFERENCE = re.compile(r"(\\*)\$\{")


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or our own reader would take for a number; writes no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML 6.0 leaves these breaks as they are unless the text is double-quoted, and reads
        # them back as a space; the spaces of Unicode at either end are lost on the way, too.
        is_delicate = text != text.strip() or not _BREAKS.isdisjoint(text)
        node: yaml.ScalarNode = self.represent_scalar(
            "tag:yaml.org,2002:str", text, style='"' if is_delicate else None
        )
        return node


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", INT, list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def to_yaml(plain: Mapping[str, Plain]) -> str:
    """Plain values as YAML in their own order; a literal `${` is escaped for the way back."""
    text: str = yaml.dump(
        _escaped(dict(plain)), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return text


def scalar_yaml(value: Plain) -> str:
    """One value on one line, as `to_yaml` would write it."""
    text: str = yaml.dump(
        _escaped(value),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf"),
        default_flow_style=True,
    )
    return text.removesuffix("...\n").strip()


def digest_of(plain: Mapping[str, Plain]) -> str:
    """SHA-256, in hexadecimal, over everything that decides the result."""
    decisive = {
        key: without_later_nulls(value) for key, value in plain.items() if key not in MAY_DIFFER
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def without_later_nulls(value: Plain) -> Plain:
    """The value without the keys in it that came later (`LATER`) and are null."""
    if isinstance(value, dict):
        return {
            key: without_later_nulls(below)
            for key, below in value.items()
            if key not in LATER or below is not None
        }
    return [without_later_nulls(below) for below in value] if isinstance(value, list) else value


def differing_keys(old: Plain, new: Plain, may_differ: Collection[str] = MAY_DIFFER) -> list[str]:
    """The dotted keys in which two plain configs differ, those below `may_differ` left out."""
    pairs = _differing(without_later_nulls(old), without_later_nulls(new), ())
    return [dotted(path) for path in pairs if path[0] not in may_differ]


def _differing(old: Plain, new: Plain, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            if name in old and name in new:
                yield from _differing(old[name], new[name], (*path, name))
            else:
                yield (*path, name)
    elif old != new:
        yield path


def _escaped(value: Plain) -> Plain:
    """The value with `${` made literal, as OmegaConf reads it back."""
    if isinstance(value, dict):
        return {key: _escaped(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_escaped(below) for below in value]
    return _REFERENCE.sub(r"\1\1\\${", value) if isinstance(value, str) else value
