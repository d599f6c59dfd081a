"""Names of people, from the lexicon, capital letters and cue phrases.

Words are read from left to right. A name starts at a title, at a given name that is no common word,
at an ambiguous given name (Will, Mark) beside a surname, at two capitalised words that are in no
list of common words, or where a cue such as "my name is" or "Hi" announces one. How the words look
is in `name_view`, how far a name runs in `name_extent`.
"""

from __future__ import annotations

import re
from functools import cache

from jobs.support_templates.redaction.lexicon import load_lexicon
from jobs.support_templates.redaction.marks import Marks
from jobs.support_templates.redaction.name_cues import CUE_WORDS, Cue, find_cues
from jobs.support_templates.redaction.name_extent import character_end, extended, particle_end
from jobs.support_templates.redaction.name_view import NameView, Word
from jobs.support_templates.redaction.name_words import (
    CALENDAR,
    CAPITAL_TITLES,
    MODALS,
    NEVER_ALONE,
    NEVER_CUED,
    NEVER_MENTIONED,
    NEVER_NAMES,
    PARTICLES,
    TITLES,
)
from jobs.support_templates.redaction.spans import Span

_CAPITAL_INSIDE = re.compile(r"\s(?<![.!?] )[^\W\d_a-z][^\W\d_A-Z]")
"""A capitalised word that does not just begin a sentence."""

_AFTER_TITLE = re.compile(r"\.?[ \t]{1,2}|\.")
_SELF_NAMED = re.compile(r"[ ,]{1,2}(?:here|speaking|writing|calling)\b")


def find_names(marks: Marks) -> list[Span]:
    """Spans of NAME, titles and suffixes included."""
    text, lexicon = marks.text, load_lexicon()
    if (
        _trigger_words().isdisjoint(marks.words)
        and not _CAPITAL_INSIDE.search(text)
        and (" " in text or not text[:1].isupper())
    ):
        return []
    view = NameView(text, lexicon)
    reader = _Reader(view, find_cues(marks))
    spans: list[Span] = []
    position = 0
    for index in reader.places():
        if index < position:
            continue
        position = reader.name_end(index)
        if position > index:
            start = view.words[index].start
            spans.append(Span(start, character_end(view, position), "NAME"))
    return spans


@cache
def _trigger_words() -> frozenset[str]:
    """Words without which, and without capitals inside, no text holds a name."""
    lexicon = load_lexicon()
    return lexicon.sure_given | lexicon.sure_surnames | TITLES | CUE_WORDS


class _Reader:
    """Reads names out of the words of one text."""

    def __init__(self, view: NameView, cues: dict[int, Cue]) -> None:
        self._view = view
        self._words = view.words
        self._lexicon = view.lexicon
        self._cues = cues

    def places(self) -> list[int]:
        """The words that are worth a closer look; most are not."""
        given, cues = self._lexicon.given, self._cues
        return [
            index
            for index, (start, _, key, is_capital, _) in enumerate(self._words)
            if is_capital or key in given or start in cues or key in TITLES or "-" in key
        ]

    def name_end(self, index: int) -> int:
        """Index after the last word of the name that starts at `index`; `index` if none does."""
        word = self._words[index]
        cue = self._cues.get(word.start)
        if self._is_title(index):
            return extended(self._view, index, index + 2, is_told=False)
        if cue is not None and self._is_announced(index, cue):
            return extended(self._view, index, index + 1, is_told=cue is Cue.TOLD)
        if self._lexicon.is_sure_given(word.key):
            return extended(self._view, index, index + 1, is_told=False)
        if (
            self._is_given_beside_surname(index)
            or self._is_capital_pair(index)
            or self._stands_alone(index)
        ):
            return extended(self._view, index, index + 1, is_told=False)
        return index

    def _is_title(self, index: int) -> bool:
        """Whether a title stands here before a word that can be a name."""
        title = self._words[index]
        if title.key not in TITLES and not (title.key in CAPITAL_TITLES and title.is_capital):
            return False
        follower = self._view.at(index + 1)
        if follower is None or not _AFTER_TITLE.fullmatch(self._view.gap(index + 1)):
            return False
        if not self._lexicon.is_common(follower.key):
            return len(follower.key) > 1 or self._view.gap(index + 1) != " "
        return self._view.shows_capital(follower) and follower.key not in NEVER_CUED

    def _is_announced(self, index: int, cue: Cue) -> bool:
        """Whether the word after a cue can be a name, given how strong the cue is."""
        word, lexicon = self._words[index], self._lexicon
        if word.key in NEVER_CUED or len(word.key) < 2:
            return False
        is_common = lexicon.is_common(word.key)
        if cue is Cue.TOLD:
            return not is_common or lexicon.is_given(word.key) or self._is_capital_surname(word)
        if word.key in MODALS and not self._view.closes(index):
            return False
        if cue is Cue.MENTIONED:
            return (
                word.key not in NEVER_MENTIONED
                and self._view.shows_capital(word)
                and (lexicon.is_given(word.key) or self._view.is_proper(word))
            )
        if lexicon.is_given(word.key):
            return self._view.shows_capital(word) or (
                cue is Cue.GREETED and self._view.closes(index)
            )
        if is_common or word.is_upper:
            return False
        if cue is Cue.GREETED:
            return lexicon.is_sure_surname(word.key) or (
                self._view.shows_capital(word) and self._view.closes(index)
            )
        return self._view.is_proper(word)

    def _is_given_beside_surname(self, index: int) -> bool:
        """Whether an ambiguous given name or an initial stands before a surname."""
        word, lexicon = self._words[index], self._lexicon
        step = 2 if self._view.is_initial(index + 1) else 1
        surname = self._view.at(index + step)
        if surname is None or not self._view.joins(index + step):
            return False
        if self._view.is_initial(index) and word.is_capital:
            is_marked = self._view.gap(index + 1).startswith(".")
            return (is_marked or word.key not in "ia") and (
                self._view.shows_capital(surname)
                and lexicon.is_surname(surname.key)
                and not lexicon.is_common(surname.key)
            )
        if not lexicon.is_given(word.key) or word.key in NEVER_NAMES:
            return False
        if word.key in CALENDAR and not self._view.shows_capital(surname):
            return False
        if lexicon.is_sure_surname(surname.key):
            return word.key not in MODALS or not lexicon.is_given(surname.key)
        return (
            self._view.shows_capital(word)
            and self._view.shows_capital(surname)
            and lexicon.is_surname(surname.key)
            and (not lexicon.is_common(surname.key) or lexicon.is_noun_surname(surname.key))
        )

    def _stands_alone(self, index: int) -> bool:
        """Whether an ambiguous given name is all there is, or says "here" or "speaking"."""
        word = self._words[index]
        if not self._view.shows_capital(word) or word.key in NEVER_ALONE:
            return False
        is_given = self._lexicon.is_given(word.key)
        if not is_given and self._lexicon.is_common(word.key):
            return False
        if _SELF_NAMED.match(self._view.text, word.end):
            return True
        is_all = word.end - word.start == len(self._view.text.strip(" .!"))
        return is_all and (is_given or self._view.is_listed(word))

    def _is_capital_pair(self, index: int) -> bool:
        """Whether two capitalised, uncommon words stand here, particles between them or not."""
        if not self._view.is_proper(self._words[index]):
            return False
        following = self._view.at(index + 1)
        if following is None or not self._view.joins(index + 1):
            return False
        if following.key in PARTICLES:
            end = particle_end(self._view, index + 1)
            return end > index + 1 and self._view.is_proper(self._words[end - 1])
        return self._view.is_proper(following)

    def _is_capital_surname(self, word: Word) -> bool:
        return self._view.shows_capital(word) and self._lexicon.is_noun_surname(word.key)
