"""Spans of personal data in a text: their kinds, how they merge, and how they are replaced.

A span holds offsets into the original text and a kind, never the value. This module knows nothing
of how spans are found. The rules of merging are those of the job's documentation: overlapping
spans become one, the kind of the longest wins, ties go to the kind that stands first in `KINDS`;
neighbours of one kind with nothing but white space between them become one placeholder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

KINDS = (
    "NAME",
    "EMAIL",
    "PHONE",
    "CARD",
    "SSN",
    "ADDRESS",
    "HANDLE",
    "DOB",
    "IP",
    "URL",
    "IBAN",
    "ACCOUNT",
)
"""Kinds of personal data in the order that settles ties."""

ROLE_TAGS = ("CUSTOMER", "SYSTEM", "ADVOCATE")
"""Tags of the transcript format; they look like placeholders and are left alone like them."""

_PRIORITY = {kind: place for place, kind in enumerate(KINDS)}
_LITERAL = re.compile(f"<(?:{'|'.join(KINDS + ROLE_TAGS)})>")


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open range of characters of the original text and the kind of data it holds."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True)
class Redaction:
    """The redacted text, where the replaced spans lay in the original, and how many of each."""

    text: str
    spans: tuple[Span, ...]
    counts: dict[str, int]


def pieces(text: str) -> Iterator[tuple[int, int]]:
    """Ranges of `text` between literal placeholders and role tags."""
    start = 0
    for literal in _LITERAL.finditer(text):
        if literal.start() > start:
            yield start, literal.start()
        start = literal.end()
    if start < len(text):
        yield start, len(text)


def merge(spans: Iterable[Span]) -> list[Span]:
    """Unite overlapping spans; the longest gives the kind, ties go to the first in `KINDS`."""
    merged: list[Span] = []
    winner: Span | None = None
    for span in sorted(spans):
        if winner is None or span.start >= merged[-1].end:
            merged.append(span)
            winner = span
            continue
        if _rank(span) < _rank(winner):
            winner = span
        merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end), winner.kind)
    return merged


def collapse(text: str, spans: Sequence[Span]) -> list[Span]:
    """Join neighbours of one kind that have nothing or only white space between them."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].kind == span.kind:
            between = text[joined[-1].end : span.start]
            if not between or between.isspace():
                joined[-1] = Span(joined[-1].start, span.end, span.kind)
                continue
        joined.append(span)
    return joined


def replace(text: str, spans: Sequence[Span]) -> Redaction:
    """Put placeholders in the place of sorted, disjoint spans."""
    if not spans:
        return Redaction(text, (), {})
    parts: list[str] = []
    position = 0
    for span in spans:
        parts += (text[position : span.start], f"<{span.kind}>")
        position = span.end
    parts.append(text[position:])
    counts = Counter(span.kind for span in spans)
    ordered = {kind: counts[kind] for kind in KINDS if counts[kind]}
    return Redaction("".join(parts), tuple(spans), ordered)


def _rank(span: Span) -> tuple[int, int]:
    """Sort key that puts the span that decides the kind of a merged group first."""
    return span.start - span.end, _PRIORITY[span.kind]
