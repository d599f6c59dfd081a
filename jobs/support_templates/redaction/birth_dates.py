"""Dates of birth.

A date after "born on", "dob" and the like is one, whatever its form. A full date without a cue is
one when its year is so far back that no support chat tells of it as of an event. The limit is a
constant and not the clock's year: the same text must be redacted in the same way next year.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from jobs.support_templates.redaction.marks import Marks
from jobs.support_templates.redaction.spans import Span

BIRTH_YEARS = range(1900, 2011)
"""Years of full dates that count as dates of birth without a cue."""

CUE_REACH = 50
"""How many characters after a cue are searched for its date."""

_MONTH = (
    "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_YEAR = r"(?:(?P<year{n}>(?:19|20)\d\d)|'?\d\d)"
_DATE = re.compile(
    r"(?<![\w.,/-])(?:"
    + r"(?P<year0>(?:19|20)\d\d)(?P<s0>[-/. ])\d{1,2}(?P=s0)\d{1,2}"
    + r"|\d{1,2}(?P<s1>[-/. ])\d{1,2}(?P=s1)"
    + _YEAR.format(n=1)
    + rf"|{_DAY}(?: of)?[ -]{{0,2}}{_MONTH},?[ -]{{0,2}}"
    + _YEAR.format(n=2)
    + rf"|{_MONTH}[ -]{{0,2}}(?:the )?{_DAY},?[ -]{{1,2}}"
    + _YEAR.format(n=3)
    + r")(?![\w/-])(?!\.\d)",
    re.IGNORECASE,
)
_LOOSE_DATE = re.compile(
    rf"(?<![\w.,/-])(?:\d{{8}}|\d{{6}}|{_MONTH} ?,?(?:19|20)\d\d|{_DAY}(?: of)? {_MONTH}"
    rf"|{_MONTH} (?:the )?{_DAY}|(?:19|20)\d\d)(?![\w/])",
    re.IGNORECASE,
)
_CUE = re.compile(
    r"\b(?:dob|d\.o\.b|date of birth|birth ?date|birthday|birth day|b-day|bday|born)\b\.?",
    re.IGNORECASE,
)
_CUE_AFTER = re.compile(
    r"[\s,]{0,3}(?:is|was|=|\(|-)?\s?(?:my|her|his|the|our|their)?\s?"
    r"(?:dob|d\.o\.b|date of birth|birth ?date|birthday|bday)\b",
    re.IGNORECASE,
)


_SEPARATED = re.compile(r"\d[-/. ]\d{1,2}[-/. ]\d")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_CUE_PARTS = ("birth", "born", "dob", "d.o.b", "bday", "b-day")


def find_birth_dates(marks: Marks) -> Iterator[Span]:
    """Spans of DOB in a text that has digits."""
    text = marks.text
    if marks.digits >= 3 and (marks.may_match(_SEPARATED) or marks.may_hold(*_MONTHS)):
        for match in _DATE.finditer(text):
            year = next((int(match[f"year{n}"]) for n in range(4) if match[f"year{n}"]), None)
            if year in BIRTH_YEARS or _CUE_AFTER.match(text, match.end()):
                yield Span(match.start(), match.end(), "DOB")
    if not marks.may_hold(*_CUE_PARTS):
        return
    for cue in _CUE.finditer(text):
        window = (cue.end(), cue.end() + CUE_REACH)
        found = _DATE.search(text, *window) or _LOOSE_DATE.search(text, *window)
        if found is not None:
            yield Span(found.start(), found.end(), "DOB")
