"""JSON in one fixed form: what may be written, how it is spelt, and its fingerprint.

Everything that a run leaves as JSON passes through here, so that a value read back equals the value
written and equal values have equal bytes. JSON has no infinities and no "not a number": `finite`
replaces them by null where a file is for people and other programs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence


def canonical(value: object) -> str:
    """The value as JSON with sorted keys and no spaces; equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(value: object) -> str:
    """The SHA-256 of the value's canonical JSON in hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode("utf-8")).hexdigest()


def pretty(value: object) -> str:
    """The value as indented JSON for people, with null for what is not a finite number."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: object) -> object:
    """The value with every float that JSON cannot hold replaced by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [finite(item) for item in value]
    return value


def round_trip(value: object, owner: str) -> object:
    """The value as it would be read back; a TypeError naming `owner` if that is another value."""
    try:
        back: object = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{owner} must be plain JSON, but {error}") from error
    if not _same(value, back):
        raise TypeError(
            f"{owner} changes when it is written as JSON: use only dictionaries with string keys, "
            f"lists, strings, numbers, booleans and None; got {value!r:.200}"
        )
    return back


def _same(value: object, back: object) -> bool:
    if isinstance(value, float) and math.isnan(value):
        return isinstance(back, float) and math.isnan(back)
    if isinstance(value, dict) and isinstance(back, dict):
        return value.keys() == back.keys() and all(_same(value[key], back[key]) for key in value)
    if isinstance(value, list) and isinstance(back, list):
        return len(value) == len(back) and all(map(_same, value, back))
    return type(value) is type(back) and value == back
