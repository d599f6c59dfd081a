"""What a text holds, found once, so that most patterns are ruled out without being tried.

Nearly every pattern of this package needs a word or a character that few texts have. The words of a
text are collected once, and a pattern whose words are not among them is not run. This never hides a
find: a pattern is left out only where it cannot match. That is certain in plain ASCII only, because
under IGNORECASE some other letters stand for ASCII ones (the long s, the Kelvin sign); in any other
text every pattern runs.
"""

from __future__ import annotations

import re
from collections.abc import Set
from typing import NamedTuple

from jobs.support_templates.redaction.lexicon import folded_words

_DIGIT = re.compile(r"\d")


class Marks(NamedTuple):
    """A text and what is known of it before any pattern is tried."""

    text: str
    lowered: str
    words: Set[str]
    """Runs of the letters a to z, after lower case and without diacritics."""
    digits: int
    """How many digits the text has."""
    is_plain: bool
    """Whether the text is ASCII, so that patterns may be ruled out."""

    @classmethod
    def of(cls, text: str) -> Marks:
        """Read a text."""
        return cls(
            text=text,
            lowered=text.lower(),
            words=folded_words(text),
            digits=len(_DIGIT.findall(text)),
            is_plain=text.isascii(),
        )

    def may_hold_word(self, words: frozenset[str]) -> bool:
        """Whether the text can have one of `words`, in any case, between characters of no word."""
        return not (self.is_plain and words.isdisjoint(self.words))

    def may_hold(self, *parts: str) -> bool:
        """Whether the text can have one of `parts`, given in lower case, anywhere."""
        if not self.is_plain:
            return True
        lowered = self.lowered
        # A loop and no generator, which would cost several times as much as the search.
        for part in parts:  # noqa: SIM110
            if part in lowered:
                return True
        return False

    def may_match(self, pattern: re.Pattern[str]) -> bool:
        """Whether the text can match what is longer than `pattern`, written for ASCII alone."""
        return not self.is_plain or pattern.search(self.text) is not None
