"""The words of a text as the rules for names see them: spelling, capitals, what lies between.

Nothing here decides what a name is. Capital letters are evidence only where most common words go
without: in "WHERE IS MY CARD" and "Where Is My Card" they say nothing.
"""

from __future__ import annotations

import re
from operator import methodcaller
from typing import NamedTuple

from jobs.support_templates.redaction.lexicon import Lexicon, fold
from jobs.support_templates.redaction.name_words import TITLES

_LETTER = r"(?:[^\W\d_][\u0300-\u036f]*+)"
_WORD = re.compile(rf"(?<!\w){_LETTER}++(?:['’\-‐]{_LETTER}++)*+(?!\w)")
_PLAIN_WORD = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z]++(?:['-][A-Za-z]++)*+(?![A-Za-z0-9_])")
"""The same for a text of ASCII, several times as fast."""
_SPAN_OF = methodcaller("span")
_INITIAL_GAP = re.compile(r"\.[ \t]{0,2}")
_POSSESSIVE = ("'s", "’s", "'S", "’S")


class Word(NamedTuple):
    """A word of the text: where it stands, its folded spelling and its capital letters."""

    start: int
    end: int
    key: str
    is_capital: bool
    is_upper: bool


class NameView:
    """The words of one text, and what can be asked of each."""

    def __init__(self, text: str, lexicon: Lexicon) -> None:
        self.text = text
        self.lexicon = lexicon
        self.words = _words(text)
        common = lexicon.ordinary
        ordinary = [
            is_capital
            for _, _, key, is_capital, _ in self.words[1:]
            if key in common and len(key) > 1
        ]
        self._capitals_inform = not text.isupper() and 2 * sum(ordinary) <= len(ordinary)

    def at(self, index: int) -> Word | None:
        """The word at `index`; None past the last one."""
        return self.words[index] if index < len(self.words) else None

    def gap(self, index: int) -> str:
        """Characters between the word before `index` and the word there."""
        return self.text[self.words[index - 1].end : self.words[index].start]

    def joins(self, index: int) -> bool:
        """Whether only spaces, or the full stop of an initial, part a word from the one before."""
        gap = self.gap(index)
        if gap == " ":
            return True
        if gap.strip(" \t\u00a0") == "":
            return 0 < len(gap) <= 3
        previous = self.words[index - 1]
        is_short = len(previous.key) == 1 or previous.key in ("st", *TITLES)
        return is_short and _INITIAL_GAP.fullmatch(gap) is not None

    def closes(self, index: int) -> bool:
        """Whether the text, a line or a clause ends after the word."""
        end = self.words[index].end
        following = self.text[end : end + 2].lstrip(" \t")
        return not following or following[0] in ",.!?;:-–—\n\r)"

    def is_initial(self, index: int) -> bool:
        """Whether a single letter stands here that is capital or has a full stop."""
        word = self.at(index)
        if word is None or len(word.key) != 1:
            return False
        return word.is_capital or self.text[word.end : word.end + 1] == "."

    def shows_capital(self, word: Word) -> bool:
        """Whether the word has a capital letter that means something."""
        return word.is_capital and self._capitals_inform

    def is_proper(self, word: Word) -> bool:
        """Whether the word is capitalised, no acronym and no common word."""
        return (
            self.shows_capital(word)
            and not word.is_upper
            and len(word.key) > 1
            and not self.lexicon.is_common(word.key)
        )

    def is_listed(self, word: Word) -> bool:
        """Whether the word is no common word and in the lists, or spelled as English is not."""
        return not self.lexicon.is_common(word.key) and (
            self.lexicon.is_surname(word.key)
            or self.lexicon.is_given(word.key)
            or not self.text[word.start : word.end].isascii()
        )


def _words(text: str) -> list[Word]:
    if not text.isascii():
        return [_word(match) for match in _WORD.finditer(text)]
    if "'" in text:
        return [_word(match) for match in _PLAIN_WORD.finditer(text)]
    # The same without calls: this runs for every word of every text that may hold a name.
    lowered = text.lower()
    return [
        Word(
            start,
            end,
            lowered[start:end],
            text[start].isupper(),
            end > start + 1 and text[start:end].isupper(),
        )
        for start, end in map(_SPAN_OF, _PLAIN_WORD.finditer(text))
    ]


def _word(match: re.Match[str]) -> Word:
    spelled = match.group()
    start, end = match.span()
    if spelled.endswith(_POSSESSIVE):
        spelled, end = spelled[:-2], end - 2
    return Word(
        start, end, fold(spelled), spelled[0].isupper(), len(spelled) > 1 and spelled.isupper()
    )
