"""The redactor: detectors in layers, applied until nothing is left to find.

Text is cut at literal placeholders and role tags, and each piece is searched on its own. Finding a
span cuts a piece into smaller ones, which are searched again, because a shorter piece can show what
a longer one hid. The work ends when no piece holds a find; so redacting a redacted text, whose
pieces are exactly those last ones, changes nothing: `redact(redact(x)) == redact(x)` by
construction, whatever the detectors are, as long as they are deterministic.

Nothing here logs. Callers may log `Redaction.counts`; no other field of a redaction belongs in a
log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Protocol

from jobs.support_templates.redaction.marks import Marks
from jobs.support_templates.redaction.patterns import find_patterns
from jobs.support_templates.redaction.person_names import find_names
from jobs.support_templates.redaction.spans import (
    Redaction,
    Span,
    collapse,
    merge,
    pieces,
    replace,
)

REDACTOR_VERSION = "1"
"""Version of the rules. Any change that can alter one output raises it: a pattern, a word list, the
merging, a pinned library that a rule asks (`names`, `phonenumbers`, `python-stdnum`). Derived
tables carry it, and the packer and the endpoint refuse a version that is not theirs."""

MAX_ROUNDS = 8
"""How often a piece may be cut and searched again. Real text needs two rounds. A text made to need
more has the rest of the piece redacted whole, which bounds the time and errs on the safe side."""

Detector = Callable[[str], Iterable[Span]]


class Redactor(Protocol):
    """What the rest of the job knows of redaction."""

    @property
    def version(self) -> str:
        """Version of the rules and of every layer that is switched on."""

    def redact(self, text: str) -> Redaction:
        """Redact `text`; the spans are offsets into the original."""

    def redact_text(self, text: str) -> str:
        """Redact `text` and return the text alone."""

    def remembering(self, pieces: int) -> Redactor:
        """The same redactor, which keeps what it found in so many pieces of text.

        The pieces themselves are kept in memory too, so it is for one piece of work.
        """


def build_redactor(presidio: bool) -> Redactor:
    """The rule redactor, with presidio as a second layer where `presidio` is set.

    Raises:
        UserError: if presidio or its language model is asked for and not installed.
    """
    if not presidio:
        return LayeredRedactor(REDACTOR_VERSION, (find_by_rules,))
    from jobs.support_templates.redaction.presidio import PresidioDetector

    second = PresidioDetector()
    return LayeredRedactor(f"{REDACTOR_VERSION}+{second.version}", (find_by_rules, second))


def find_by_rules(text: str) -> list[Span]:
    """Every span that the rules find, overlaps included."""
    marks = Marks.of(text)
    spans = find_patterns(marks)
    spans += find_names(marks)
    return spans


class LayeredRedactor:
    """Applies detectors to the pieces of a text until none of them finds anything."""

    def __init__(
        self, version: str, detectors: tuple[Detector, ...], remembered_pieces: int = 0
    ) -> None:
        self._version = version
        self._detectors = detectors
        self._search: Callable[[str], list[Span]] = self._search_anew
        if remembered_pieces:
            self._search = lru_cache(remembered_pieces)(self._search_anew)

    @property
    def version(self) -> str:
        """Version of the rules and of every layer that is switched on."""
        return self._version

    def redact(self, text: str) -> Redaction:
        """Redact `text`; the spans are offsets into the original."""
        return replace(text, self._spans(text))

    def redact_text(self, text: str) -> str:
        """Redact `text` and return the text alone."""
        return self.redact(text).text

    def remembering(self, pieces: int) -> LayeredRedactor:
        """The same redactor, which keeps what it found in so many pieces of text."""
        return LayeredRedactor(self._version, self._detectors, pieces)

    def _spans(self, text: str) -> list[Span]:
        """Disjoint spans of `text` in order, collapsed."""
        found: list[Span] = []
        waiting = [(start, end, MAX_ROUNDS) for start, end in pieces(text)]
        while waiting:
            start, end, rounds = waiting.pop()
            if start == end:
                continue
            spans = self._search(text[start:end])
            if not spans:
                continue
            if not rounds:
                longest = max(spans, key=lambda span: span.end - span.start)
                found.append(Span(start, end, longest.kind))
                continue
            position = start
            for span in spans:
                found.append(Span(start + span.start, start + span.end, span.kind))
                waiting.append((position, start + span.start, rounds - 1))
                position = start + span.end
            waiting.append((position, end, rounds - 1))
        return collapse(text, sorted(found))

    def _search_anew(self, piece: str) -> list[Span]:
        """One round of every detector over one piece, merged."""
        spans = [span for detector in self._detectors for span in detector(piece)]
        return merge(spans) if len(spans) > 1 else spans
