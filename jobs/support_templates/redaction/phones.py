"""Telephone numbers.

Three layers. Written the North American way, a number is taken by its shape. International
numbers and numbers with a trunk zero are taken by shape, with `phonenumbers` deciding how many
groups belong to an international one. Other groups of digits need a cue such as "call me on" or
must be valid in a region that `phonenumbers` knows. Amounts, years, dates and order numbers are
none of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import phonenumbers

from jobs.support_templates.redaction.lexicon import word_set
from jobs.support_templates.redaction.marks import Marks
from jobs.support_templates.redaction.spans import Span

NOT_PERSONAL_CUE = re.compile(
    r"\b(?:order|transaction|txn|trx|reference|ref|invoice|ticket|case|tracking|confirmation"
    r"|receipt|claim|request|payment|transfer|booking|parcel|serial|error|code|version|model)"
    r"(?: (?:number|numbers|no\.?|num|id|ids|code|nr))?(?: (?:is|was))?[\s:#.=(-]*$",
    re.IGNORECASE,
)
"""What stands before a number that identifies a thing and not a person."""

ACCOUNT_CUE = re.compile(
    r"\b(?:account|acct|a/c|acc|routing|aba|member|membership|customer|client|card|policy|iban|bban"
    r"|ssn|social|security)(?: (?:number|no\.?|num|id|nr))?(?: (?:is|was))?[\s:#.=(-]*$",
    re.IGNORECASE,
)
"""What stands before a number of another kind."""

CUE_REACH = 40
"""How many characters before a number are searched for a cue."""

MOST_VALIDATED = 50
"""Candidates of one kind in one text that are put to `phonenumbers`, which is slow; no message of
a person has more, and what a text has beyond counts as a telephone number unasked."""

DASH = r"\-‐‑‒–—−"
"""The hyphens, dashes and minus signs that people and phones type, for a character class."""

_GAP = rf"[ .{DASH}]"
_EXTENSION = r"(?:[ ,]{0,2}(?:x|ext\.?|extension)[ .:#]{0,2}\d{1,6})?"
_BEFORE = rf"(?<![\w+])(?<![\d][.,])(?<![$£€{DASH}])"
_AFTER = rf"(?![\w])(?![{DASH}]\d)"
_NORTH_AMERICAN = re.compile(
    rf"{_BEFORE}(?:(?:\+|00)?1{_GAP}{{0,2}})?"
    rf"(?:\(\d{{3}}\){_GAP}{{0,2}}|\d{{3}}{_GAP})\d{{3}}{_GAP}?\d{{4}}{_EXTENSION}{_AFTER}",
    re.IGNORECASE,
)
_LOCAL = re.compile(rf"{_BEFORE}\d{{3}}[{DASH}]\d{{4}}{_EXTENSION}{_AFTER}", re.IGNORECASE)
_BARE_TEN = re.compile(
    rf"{_BEFORE}1?[2-9]\d\d[2-9]\d{{6}}{_EXTENSION}{_AFTER}(?!\.\d)", re.IGNORECASE
)
_INTERNATIONAL = re.compile(
    rf"(?<![\w.,+])(?:\+ ?|00(?=[1-9]))\d(?:[ .()/{DASH}]{{0,3}}\d){{6,14}}{_EXTENSION}(?!\d)",
    re.IGNORECASE,
)
_TRUNK = re.compile(
    rf"{_BEFORE}\(?0\d{{1,4}}\)?(?:[ ./{DASH}]{{0,2}}\d{{2,8}}){{1,4}}{_EXTENSION}{_AFTER}",
    re.IGNORECASE,
)
_GROUPED = re.compile(rf"{_BEFORE}\d{{2,4}}(?:[ .{DASH}]\d{{2,4}}){{2,4}}{_AFTER}(?!\.\d)")
_CUED = re.compile(
    r"\b(?:phone|mobile|mob|cell|cellphone|tel|telephone|landline|fax|whatsapp|sms|call|text|ring"
    r"|reach|contact|my (?:new |old |other )?(?:number|no|nr))\b"
    r"(?P<gap>[^\d\n+(]{0,30})"
    rf"(?P<number>(?!\+|00[1-9])\(?\d(?:[ ./(){DASH}]{{0,2}}\d){{6,14}}{_EXTENSION})(?![\w])",
    re.IGNORECASE,
)
_CUE_BROKEN = re.compile(
    r"\b(?:order|transaction|reference|ref|invoice|ticket|case|account|card|code|about|for)\b",
    re.IGNORECASE,
)
_DATE_LIKE = re.compile(
    r"\d{1,2}([./ -])\d{1,2}\1(?:19|20)\d\d(?!\d)|(?:19|20)\d\d([./ -])\d{1,2}\2\d{1,2}(?!\d)"
    r"|\d{1,2}([./-])\d{1,2}\3\d\d(?!\d)"
)
_SSN_LIKE = re.compile(r"\d{3}\D\d{2}\D\d{4}$")
_GROUP = re.compile(r"\d+")
_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "PL", "PT", "AU", "IN", "BR", "MX")


_CUE_WORDS = word_set(
    "phone mobile mob cell cellphone tel telephone landline fax whatsapp sms call text ring reach "
    "contact number no nr"
)


def find_phones(marks: Marks, others: Sequence[Span]) -> Iterator[Span]:
    """Spans of PHONE in a text that has at least seven digits.

    Args:
        marks: of the text.
        others: what other detectors found. A number that lies within one of their finds changes
            nothing, so it is not judged, which takes long.
    """
    text = marks.text
    found: list[Span] = []
    if marks.digits >= 10:
        for match in _NORTH_AMERICAN.finditer(text):
            found.append(Span(match.start(), match.end(), "PHONE"))
    if marks.may_hold_word(_CUE_WORDS):
        for match in _CUED.finditer(text):
            if not _CUE_BROKEN.search(match["gap"]) and not _DATE_LIKE.match(match["number"]):
                found.append(Span(match.start("number"), match.end(), "PHONE"))
    yield from found
    found += others
    if "+" in text or marks.may_hold("00"):
        for count, match in enumerate(_INTERNATIONAL.finditer(text)):
            if _lies_within(match, found):
                continue
            length = len(match.group())
            if count < MOST_VALIDATED:
                length = _international_length(match.group())
            yield Span(match.start(), match.start() + length, "PHONE")
    for pattern in _national(marks):
        for count, match in enumerate(pattern.finditer(text)):
            if (
                not _lies_within(match, found)
                and not is_other_number(text, match.start())
                and (count >= MOST_VALIDATED or _ACCEPTS[pattern](match.group()))
            ):
                yield Span(match.start(), match.end(), "PHONE")


def _lies_within(match: re.Match[str], found: Sequence[Span]) -> bool:
    """Whether a longer find, or a telephone number as long, already holds the match."""
    start, end = match.span()
    return any(
        span.start <= start
        and end <= span.end
        and (span.kind == "PHONE" or span.end - span.start > end - start)
        for span in found
    )


def _national(marks: Marks) -> Iterator[re.Pattern[str]]:
    """The patterns of numbers without a country's code, as far as they can match."""
    if marks.may_hold("-"):
        yield _LOCAL
    if marks.digits >= 10:
        yield _BARE_TEN
    if marks.digits >= 9:
        if marks.may_hold("0"):
            yield _TRUNK
        yield _GROUPED


def is_other_number(text: str, start: int) -> bool:
    """Whether the words before `start` say that the number there is no telephone number."""
    before = text[max(0, start - CUE_REACH) : start]
    return bool(NOT_PERSONAL_CUE.search(before) or ACCOUNT_CUE.search(before))


def _international_length(candidate: str) -> int:
    """Characters up to the last group with which the number is valid, or all of them."""
    digits_from = 1 if candidate.startswith("+") else 2
    for group in reversed(list(_GROUP.finditer(candidate))):
        number = "+" + re.sub(r"\(0\)|\D", "", candidate[digits_from : group.end()])
        if _is_valid(number, None):
            return group.end()
        if re.search(r"x|ext", candidate[: group.start()], re.IGNORECASE):
            without = re.split(r"(?i)[ ,]*(?:x|ext)", candidate)[0]
            if _is_valid("+" + re.sub(r"\(0\)|\D", "", without[digits_from:]), None):
                return len(candidate)
    return len(candidate)


def _is_trunk_number(candidate: str) -> bool:
    """Nine to twelve digits from a leading zero, not a date and, unbroken, not a routing number."""
    bare = re.split(r"(?i)[ ,]*(?:x|ext)", candidate)[0]
    groups = _GROUP.findall(bare)
    digits = sum(map(len, groups))
    shortest = 9 if len(groups) > 1 else 10
    return shortest <= digits <= 12 and not _DATE_LIKE.match(bare)


def _is_grouped_number(candidate: str) -> bool:
    """Nine to twelve digits in groups that are a valid number somewhere, not a date or an SSN."""
    digits = re.sub(r"\D", "", candidate)
    if not 9 <= len(digits) <= 12 or _DATE_LIKE.match(candidate) or _SSN_LIKE.match(candidate):
        return False
    return _is_valid("+" + digits, None) or any(_is_valid(digits, region) for region in _REGIONS)


def _is_valid(number: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False


def _always(candidate: str) -> bool:
    return True


_ACCEPTS = {
    _LOCAL: _always,
    _BARE_TEN: _always,
    _TRUNK: _is_trunk_number,
    _GROUPED: _is_grouped_number,
}
