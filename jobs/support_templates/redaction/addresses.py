"""Postal addresses.

A street address is a house number, one to four words and a street suffix (USPS Publication 28,
appendix C1, in full). Some suffixes are hardly ever anything else (Street, Avenue, Road); the many
others are ordinary words (Way, Point, Rest) and count only after capitalised or uncommon words,
before a unit or a postcode, or after a cue such as "my address is". Unit, city, state and postcode
that follow belong to the find. "25 hours" has no suffix and is no address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from jobs.support_templates.redaction import address_patterns as shapes
from jobs.support_templates.redaction.lexicon import fold, load_lexicon, word_set
from jobs.support_templates.redaction.marks import Marks
from jobs.support_templates.redaction.spans import Span

_CUE_REACH = 50
_NOT_STREET = word_set(
    "a am an and are as at bank be been but by can card cards cents charge day days did do "
    "dollar dollars down each euro euros every fee for from gbp get got had has have hour "
    "hours how i if in into is it its items just later left me min mins minute minutes more "
    "month months my no not of off on or out over past payment payments people percent pm "
    "pound pounds purchase says seconds so than that the then there these they this time "
    "times to transaction transactions transfer transfers up us usd was we week weeks were "
    "when will with working year years yet you your"
)


_CUES = ("address", "live at", "living at", "reside at", "moved to")
_FORCES = ("apo", "fpo", "dpo")
_CONTINENTAL_WORDS = word_set(
    "calle rua via viale corso avenida plaza piazza rue avenue boulevard place chemin impasse quai "
    "cours"
)
_CONTINENTAL_ENDS = ("strasse", "str.", "gasse", "allee", "platz", "damm", "weg", "ufer")
_FIVE_DIGITS = re.compile(r" \d{5}(?!\d)")
_TOWN_AFTER_CODE = re.compile(r"[\dA-Z],?\s[A-Z]")
_CAPITAL_AND_DIGIT = re.compile(r"[A-Z]\d")


def find_addresses(marks: Marks) -> Iterator[Span]:
    """Spans of ADDRESS in a text that has digits."""
    text = marks.text
    if not shapes.MARKS.search(text):
        return
    if marks.may_hold_word(shapes.SUFFIX_WORDS):
        for match in shapes.STREET.finditer(text):
            end = _continued(text, match.end())
            if _is_street(text, match, has_continuation=end > match.end()):
                yield Span(match.start(), end, "ADDRESS")
    if marks.may_hold(*_CUES):
        for match in shapes.CUED_NUMBER.finditer(text):
            yield Span(match.start("line"), _continued(text, match.end()), "ADDRESS")
    for pattern in _lines(marks):
        for match in pattern.finditer(text):
            yield Span(match.start(), _continued(text, match.end()), "ADDRESS")
    for pattern in _whole_addresses(marks):
        for match in pattern.finditer(text):
            yield Span(match.start(), match.end(), "ADDRESS")
    if marks.may_hold("zip", "post"):
        for match in shapes.POSTCODE_CUED.finditer(text):
            yield Span(match.start("code"), match.end("code"), "ADDRESS")


def _lines(marks: Marks) -> Iterator[re.Pattern[str]]:
    """The patterns of first lines, which more may follow, as far as they can match."""
    if marks.may_hold("box"):
        yield shapes.BOX
    if marks.may_hold_word(_CONTINENTAL_WORDS) or marks.may_hold(*_CONTINENTAL_ENDS):
        yield shapes.CONTINENTAL
    if marks.may_hold(*_FORCES):
        yield shapes.MILITARY


def _whole_addresses(marks: Marks) -> Iterator[re.Pattern[str]]:
    """The patterns of addresses from beginning to end, as far as they can match."""
    if marks.digits >= 5 and marks.may_match(_FIVE_DIGITS):
        yield shapes.CITY_ALONE
    if marks.digits >= 5 and marks.may_match(_TOWN_AFTER_CODE):
        yield shapes.CONTINENTAL_LINE
    if marks.may_match(_CAPITAL_AND_DIGIT):
        yield shapes.POSTCODE_ALONE
    if marks.digits >= 3 and marks.may_hold(",", "\n"):
        yield shapes.PROPER_LINE


def _is_street(text: str, match: re.Match[str], has_continuation: bool) -> bool:
    """Whether number, words and suffix are a street and not part of a sentence."""
    words = match["words"].split()
    keys = [fold(word).rstrip(".,") for word in words]
    if any(key in _NOT_STREET for key in keys):
        return False
    if match["plain"] is not None or has_continuation:
        return True
    if all(word[0].isupper() or word[0].isdigit() for word in (*words, match["word"])):
        return True
    lexicon = load_lexicon()
    if not any(lexicon.is_common(key) for key in keys):
        return True
    return shapes.CUE.search(text, max(0, match.start() - _CUE_REACH), match.start()) is not None


def _continued(text: str, end: int) -> int:
    """Where the address ends once unit, town, state and postcode are taken in."""
    for pattern in (shapes.UNIT, shapes.CITY):
        if match := pattern.match(text, end):
            end = match.end()
    if match := shapes.MILITARY_ADDED.match(text, end):
        return match.end()
    if match := shapes.TOWN.match(text, end):
        lexicon = load_lexicon()
        keys = [fold(word) for word in match["town"].split()]
        if not all(lexicon.is_common(key) for key in keys):
            return match.end()
    return end
