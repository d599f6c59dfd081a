"""Values of a Hugging Face `config.json`: each of its type, or one sentence that says not."""

from __future__ import annotations

from collections.abc import Mapping


def require(
    values: Mapping[str, object], name: str, expected: object, *, default: object = None
) -> None:
    """Refuse any other value; an absent one is `default`, or else the expected."""
    found = values.get(name, expected if default is None else default)
    if found != expected:
        raise ValueError(f"{name} must be {expected!r}, got {found!r}.")


def require_whole_heads(width: int, heads: int) -> None:
    """Refuse heads that do not divide the width."""
    if heads < 1 or width % heads:
        raise ValueError(
            f"hidden_size ({width}) must be a multiple of num_attention_heads ({heads})."
        )


def integer(values: Mapping[str, object], name: str, default: int | None = None) -> int:
    """A whole number; `default` where it is absent or null."""
    found = values.get(name)
    if found is None:
        found = default
    if not isinstance(found, int) or isinstance(found, bool):
        raise ValueError(f"{name} must be a whole number, got {found!r}.")
    return found


def number(values: Mapping[str, object], name: str, default: float | None = None) -> float:
    """A number; `default` where it is absent or null."""
    found = values.get(name)
    if found is None:
        found = default
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise ValueError(f"{name} must be a number, got {found!r}.")
    return float(found)


def flag(values: Mapping[str, object], name: str, default: bool) -> bool:
    """True or false; `default` where it is absent or null."""
    found = values.get(name)
    if found is None:
        found = default
    if not isinstance(found, bool):
        raise ValueError(f"{name} must be true or false, got {found!r}.")
    return found
