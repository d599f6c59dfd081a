"""Names of people, from the lexicon, capital letters and cue phrases.

Words are read from left to right. A name starts at a title, at a given name that is no common word,
at an ambiguous given name (Will, Mark) beside a surname, at two capitalised words of which one is a
listed name, or where a cue such as "my name is" or "Hi" announces one. From its first word it runs
on over initials, particles, surnames and suffixes. Capital letters are evidence only where most
common words go without: in "WHERE IS MY CARD" and "Where Is My Card" they say nothing.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from jobs.support_templates.redaction.lexicon import Lexicon, fold, holds_any, load_lexicon
from jobs.support_templates.redaction.name_cues import CUE_WORDS, Cue, find_cues
from jobs.support_templates.redaction.name_words import (
    CAPITAL_TITLES,
    DOTTED,
    MODALS,
    NEVER_MENTIONED,
    NEVER_NAMES,
    PARTICLES,
    SUFFIXES,
    TITLES,
)
from jobs.support_templates.redaction.spans import Span

_LONGEST_NAME = 7
"""Words of the longest name, title and suffixes included."""

_LETTER = r"(?:[^\W\d_][\u0300-\u036f]*+)"
_WORD = re.compile(rf"(?<!\w){_LETTER}++(?:['’\-‐]{_LETTER}++)*+(?!\w)")
_POSSESSIVE = ("'s", "’s", "'S", "’S")
_CAPITAL_INSIDE = re.compile(r"\s(?<![.!?] )[^\W\d_a-z][^\W\d_A-Z]")
"""A capitalised word that does not just begin a sentence."""

_SELF_NAMED = re.compile(r"[ ,]{1,2}(?:here|speaking|writing|calling)\b")


class _Word(NamedTuple):
    """A word of the text: where it stands, its folded spelling and its capital letters."""

    start: int
    end: int
    key: str
    is_capital: bool
    is_upper: bool


def find_names(text: str) -> list[Span]:
    """Spans of NAME, titles and suffixes included."""
    lexicon = load_lexicon()
    if not (
        holds_any(text, _trigger_words())
        or _CAPITAL_INSIDE.search(text)
        or (" " not in text and text[:1].isupper())
    ):
        return []
    words = [_word(match) for match in _WORD.finditer(text)]
    reader = _Reader(text, words, lexicon)
    spans: list[Span] = []
    position = 0
    for index in range(len(words)):
        if index < position or not reader.may_start(index):
            continue
        position = reader.name_end(index)
        if position > index:
            spans.append(Span(words[index].start, reader.character_end(position), "NAME"))
    return spans


@cache
def _trigger_words() -> frozenset[str]:
    """Words without which, and without capitals inside, no text holds a name."""
    lexicon = load_lexicon()
    return lexicon.sure_given | lexicon.sure_surnames | TITLES | CUE_WORDS


def _word(match: re.Match[str]) -> _Word:
    spelled = match.group()
    end = match.end()
    if spelled.endswith(_POSSESSIVE):
        spelled, end = spelled[:-2], end - 2
    return _Word(
        start=match.start(),
        end=end,
        key=fold(spelled),
        is_capital=spelled[0].isupper(),
        is_upper=len(spelled) > 1 and spelled.isupper(),
    )


class _Reader:
    """Reads names out of the words of one text."""

    def __init__(self, text: str, words: list[_Word], lexicon: Lexicon) -> None:
        self._text = text
        self._words = words
        self._lexicon = lexicon
        self._cues = find_cues(text)
        ordinary = [
            word.is_capital
            for word in words[1:]
            if len(word.key) > 1 and word.key in lexicon.ordinary
        ]
        self._capitals_inform = not text.isupper() and 2 * sum(ordinary) <= len(ordinary)

    def may_start(self, index: int) -> bool:
        """Whether the word is worth a closer look; most words are not."""
        word = self._words[index]
        return (
            word.is_capital
            or word.key in self._lexicon.given
            or word.start in self._cues
            or word.key in TITLES
            or "-" in word.key
        )

    def name_end(self, index: int) -> int:
        """Index after the last word of the name that starts at `index`; `index` if none does."""
        word = self._words[index]
        cue = self._cues.get(word.start)
        if self._is_title(index):
            return self._extended(index, index + 2, is_told=False)
        if cue is not None and self._is_announced(index, cue):
            return self._extended(index, index + 1, is_told=cue is Cue.TOLD)
        if self._lexicon.is_sure_given(word.key):
            return self._extended(index, index + 1, is_told=False)
        if (
            self._is_given_beside_surname(index)
            or self._is_capital_pair(index)
            or self._stands_alone(index)
        ):
            return self._extended(index, index + 1, is_told=False)
        return index

    def character_end(self, index: int) -> int:
        """Where the name whose words end before `index` ends, the full stop of "Jr." included."""
        last = self._words[index - 1]
        return last.end + (last.key in DOTTED and self._text[last.end : last.end + 1] == ".")

    def _is_title(self, index: int) -> bool:
        """Whether a title stands here before a word that can be a name."""
        title = self._words[index]
        if title.key not in TITLES and not (title.key in CAPITAL_TITLES and title.is_capital):
            return False
        follower = self._at(index + 1)
        if follower is None or not re.fullmatch(r"\.?[ \t]{1,2}|\.", self._gap(index + 1)):
            return False
        if not self._lexicon.is_common(follower.key):
            return len(follower.key) > 1 or self._gap(index + 1) != " "
        return self._shows_capital(follower) and follower.key not in NEVER_NAMES

    def _is_announced(self, index: int, cue: Cue) -> bool:
        """Whether the word after a cue can be a name, given how strong the cue is."""
        word, lexicon = self._words[index], self._lexicon
        if word.key in NEVER_NAMES or len(word.key) < 2:
            return False
        is_common = lexicon.is_common(word.key)
        if cue is Cue.TOLD:
            return not is_common or lexicon.is_given(word.key) or self._is_capital_surname(word)
        if word.key in MODALS and not self._closes(index):
            return False
        if cue is Cue.MENTIONED:
            return (
                word.key not in NEVER_MENTIONED
                and self._shows_capital(word)
                and (lexicon.is_given(word.key) or self._is_proper(word))
            )
        if lexicon.is_given(word.key):
            return self._shows_capital(word) or (cue is Cue.GREETED and self._closes(index))
        if is_common or word.is_upper:
            return False
        if cue is Cue.GREETED:
            return lexicon.is_sure_surname(word.key) or (
                self._shows_capital(word) and self._closes(index)
            )
        return self._is_proper(word)

    def _is_given_beside_surname(self, index: int) -> bool:
        """Whether an ambiguous given name or an initial stands before a surname."""
        word, lexicon = self._words[index], self._lexicon
        step = 2 if self._is_initial(index + 1) else 1
        surname = self._at(index + step)
        if surname is None or not self._joins(index + step):
            return False
        if self._is_initial(index) and word.is_capital:
            is_marked = self._gap(index + 1).startswith(".")
            return (is_marked or word.key not in "ia") and (
                self._shows_capital(surname)
                and lexicon.is_surname(surname.key)
                and not lexicon.is_common(surname.key)
            )
        if not lexicon.is_given(word.key) or word.key in NEVER_NAMES:
            return False
        if lexicon.is_sure_surname(surname.key):
            return word.key not in MODALS or not lexicon.is_given(surname.key)
        return (
            self._shows_capital(word)
            and self._shows_capital(surname)
            and lexicon.is_surname(surname.key)
            and (not lexicon.is_common(surname.key) or lexicon.is_noun_surname(surname.key))
        )

    def _stands_alone(self, index: int) -> bool:
        """Whether an ambiguous given name is all there is, or says "here" or "speaking"."""
        word = self._words[index]
        if not self._shows_capital(word) or word.key in NEVER_NAMES | MODALS:
            return False
        is_given = self._lexicon.is_given(word.key)
        if not is_given and self._lexicon.is_common(word.key):
            return False
        if _SELF_NAMED.match(self._text, word.end):
            return True
        is_all = word.end - word.start == len(self._text.strip(" .!"))
        return is_all and (is_given or self._is_listed(word))

    def _is_capital_pair(self, index: int) -> bool:
        """Whether two capitalised, uncommon words stand here, particles between them or not."""
        if not self._is_proper(self._words[index]):
            return False
        following = self._at(index + 1)
        if following is None or not self._joins(index + 1):
            return False
        if following.key in PARTICLES:
            end = self._particle_end(index + 1)
            return end > index + 1 and self._is_proper(self._words[end - 1])
        return self._is_proper(following)

    def _extended(self, begin: int, end: int, is_told: bool) -> int:
        """Index after the last word of the name whose words `begin` to `end` are known."""
        known = end
        has_common = False
        while end < len(self._words) and end - begin < _LONGEST_NAME:
            word = self._words[end]
            if word.key in SUFFIXES and re.fullmatch(r"[ .,]{1,3}", self._gap(end)):
                end += 1
            elif not self._joins(end):
                if is_told and end == begin + 1 and self._is_inverted(end):
                    end += 1
                else:
                    break
            elif self._is_initial(end) and self._continues(end + 1, has_common):
                end += 2
            elif word.key in PARTICLES and self._particle_end(end) > end:
                end = self._particle_end(end)
            elif self._continues(end, has_common) or (
                is_told and end == known and self._is_unknown(word)
            ):
                has_common = has_common or self._lexicon.is_common(word.key)
                end += 1
            else:
                break
        return end

    def _continues(self, index: int, has_common: bool) -> bool:
        """Whether the word can be a further part of a name, which holds one common word at most."""
        word, lexicon = self._at(index), self._lexicon
        if word is None or not self._joins(index) or len(word.key) < 2:
            return False
        if lexicon.is_common(word.key):
            if has_common:
                return False
            return word.key in lexicon.everyday_surnames or (
                self._shows_capital(word) and lexicon.is_noun_surname(word.key)
            )
        if lexicon.is_surname(word.key) or lexicon.is_given(word.key):
            return True
        return self._shows_capital(word) and not word.is_upper

    def _particle_end(self, index: int) -> int:
        """Index after the surname that follows one or two particles; `index` if none follows."""
        for after in (index + 1, index + 2):
            word = self._at(after)
            if word is None or not self._joins(after):
                return index
            if word.key in PARTICLES:
                continue
            is_name = self._lexicon.is_noun_surname(word.key) or (
                not self._lexicon.is_common(word.key)
                and (self._shows_capital(word) or self._lexicon.is_surname(word.key))
            )
            return after + 1 if is_name else index
        return index

    def _is_inverted(self, index: int) -> bool:
        """Whether a given name follows a surname and a comma: "Smith, John"."""
        key = self._words[index].key
        return re.fullmatch(r",\s?", self._gap(index)) is not None and (
            self._lexicon.is_sure_given(key)
        )

    def _is_unknown(self, word: _Word) -> bool:
        """Whether the word is in no list, so that after a cue only a name explains it."""
        return len(word.key) > 1 and not self._lexicon.is_common(word.key)

    def _is_proper(self, word: _Word) -> bool:
        """Whether the word is capitalised, no acronym and no common word."""
        return (
            self._shows_capital(word)
            and not word.is_upper
            and len(word.key) > 1
            and not self._lexicon.is_common(word.key)
        )

    def _is_listed(self, word: _Word) -> bool:
        """Whether the word is no common word and in the lists, or spelled as English is not."""
        return not self._lexicon.is_common(word.key) and (
            self._lexicon.is_surname(word.key)
            or self._lexicon.is_given(word.key)
            or not self._text[word.start : word.end].isascii()
        )

    def _is_capital_surname(self, word: _Word) -> bool:
        return self._shows_capital(word) and self._lexicon.is_noun_surname(word.key)

    def _is_initial(self, index: int) -> bool:
        """Whether a single letter stands here that is capital or has a full stop."""
        word = self._at(index)
        if word is None or len(word.key) != 1:
            return False
        return word.is_capital or self._text[word.end : word.end + 1] == "."

    def _shows_capital(self, word: _Word) -> bool:
        return word.is_capital and self._capitals_inform

    def _closes(self, index: int) -> bool:
        """Whether the text, a line or a clause ends after the word."""
        following = self._text[self._words[index].end :][:2].lstrip(" \t")
        return not following or following[0] in ",.!?;:-–—\n\r)"

    def _at(self, index: int) -> _Word | None:
        return self._words[index] if index < len(self._words) else None

    def _gap(self, index: int) -> str:
        """Characters between the word before `index` and the word there."""
        return self._text[self._words[index - 1].end : self._words[index].start]

    def _joins(self, index: int) -> bool:
        """Whether only spaces, or the full stop of an initial, part a word from the one before."""
        gap = self._gap(index)
        if gap.strip(" \t\u00a0") == "":
            return 0 < len(gap) <= 3
        previous = self._words[index - 1]
        is_short = len(previous.key) == 1 or previous.key in ("st", *TITLES)
        return is_short and re.fullmatch(r"\.[ \t]{0,2}", gap) is not None
