"""How far a name runs once its first words are known.

It goes on over initials, particles, further given names, surnames and suffixes, and takes one
common word at most: "John Brown", and not "John Brown card".
"""

from __future__ import annotations

import re

from jobs.support_templates.redaction.name_view import NameView, Word
from jobs.support_templates.redaction.name_words import DOTTED, PARTICLES, SUFFIXES

_BEFORE_SUFFIX = re.compile(r"[ .,]{1,3}")
_LONGEST_NAME = 7
"""Words of the longest name, title and suffixes included."""


def extended(view: NameView, begin: int, end: int, is_told: bool) -> int:
    """Index after the last word of the name whose words `begin` to `end` are known."""
    known = end
    has_common = False
    while end < len(view.words) and end - begin < _LONGEST_NAME:
        word = view.words[end]
        if word.key in SUFFIXES and _BEFORE_SUFFIX.fullmatch(view.gap(end)):
            end += 1
        elif not view.joins(end):
            if is_told and end == begin + 1 and _is_inverted(view, end):
                end += 1
            else:
                break
        elif view.is_initial(end) and _continues(view, end + 1, has_common):
            end += 2
        elif word.key in PARTICLES and particle_end(view, end) > end:
            end = particle_end(view, end)
        elif _continues(view, end, has_common) or (
            is_told and end == known and _is_unknown(view, word)
        ):
            has_common = has_common or view.lexicon.is_common(word.key)
            end += 1
        else:
            break
    return end


def _continues(view: NameView, index: int, has_common: bool) -> bool:
    """Whether the word can be a further part of a name, which holds one common word at most."""
    word, lexicon = view.at(index), view.lexicon
    if word is None or not view.joins(index) or len(word.key) < 2:
        return False
    if lexicon.is_common(word.key):
        if has_common:
            return False
        return word.key in lexicon.everyday_surnames or (
            view.shows_capital(word) and lexicon.is_noun_surname(word.key)
        )
    if lexicon.is_surname(word.key) or lexicon.is_given(word.key):
        return True
    return view.shows_capital(word) and not word.is_upper


def particle_end(view: NameView, index: int) -> int:
    """Index after the surname that follows one or two particles; `index` if none follows."""
    for after in (index + 1, index + 2):
        word = view.at(after)
        if word is None or not view.joins(after):
            return index
        if word.key in PARTICLES:
            continue
        is_name = view.lexicon.is_noun_surname(word.key) or (
            not view.lexicon.is_common(word.key)
            and (view.shows_capital(word) or view.lexicon.is_surname(word.key))
        )
        return after + 1 if is_name else index
    return index


def _is_inverted(view: NameView, index: int) -> bool:
    """Whether a given name follows a surname and a comma: "Smith, John"."""
    key = view.words[index].key
    return re.fullmatch(r",\s?", view.gap(index)) is not None and (view.lexicon.is_sure_given(key))


def _is_unknown(view: NameView, word: Word) -> bool:
    """Whether the word is in no list, so that after a cue only a name explains it."""
    return len(word.key) > 1 and not view.lexicon.is_common(word.key)


def character_end(view: NameView, index: int) -> int:
    """Where the name whose words end before `index` ends, the full stop of "Jr." included."""
    last = view.words[index - 1]
    return last.end + (last.key in DOTTED and view.text[last.end : last.end + 1] == ".")
