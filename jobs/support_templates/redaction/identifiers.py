"""Numbers that identify a person or the person's money: CARD, SSN, IBAN and ACCOUNT.

Checksums decide where there are any: Luhn for cards (ISO/IEC 7812-1, annex B) and modulo 97 for
IBANs (ISO 13616), both by `python-stdnum`. A number of the right shape with a wrong checksum, a
typing error most likely, is redacted all the same where a cue or its grouping says what it is. A
run of eight or more digits that nothing explains counts as ACCOUNT, unless the words before it say
that it is an order, a reference or the like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stdnum import iban, luhn

from jobs.support_templates.redaction.lexicon import word_set
from jobs.support_templates.redaction.marks import Marks
from jobs.support_templates.redaction.phones import CUE_REACH, DASH, NOT_PERSONAL_CUE
from jobs.support_templates.redaction.spans import Span

_DIGIT_GROUPS = re.compile(rf"(?<![\w.+])\d+(?:[ .{DASH}]\d+)*(?!\w)")
_CARD_DIGITS = range(12, 20)
_CARD_GROUPINGS = ((4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3))
_SHORTEST_CARD_GROUP = 3
_CARD_CUE = re.compile(
    r"\b(?:card|visa|mastercard|amex|debit|credit|pan)\b[^\d\n]*$", re.IGNORECASE
)
_CARD_CODE = re.compile(
    r"\b(?:cvv2?|cvc2?|cv2|security code)(?: (?:number|code))?(?: is| was)?[\s:=#-]{0,4}"
    r"(\d{3,4})(?!\w)",
    re.IGNORECASE,
)
_SSN = re.compile(rf"(?<![\w{DASH}])\d{{3}}([ .{DASH}])\d{{2}}\1\d{{4}}(?!\w)(?![{DASH}]\d)")
_SSN_CUED = re.compile(
    r"\b(?:ssn|social(?: security)?|itin|tin|tax ?id|national insurance|nino|sin)\b[^\d\n]{0,30}?"
    rf"(?P<number>\d{{3}}[ .{DASH}]?(?:\d{{2}}[ .{DASH}]?\d{{4}}|\d{{3}}[ .{DASH}]?\d{{3}})"
    r"|\d{4})(?!\w)",
    re.IGNORECASE,
)
_NATIONAL_INSURANCE = re.compile(
    r"(?<!\w)[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-Z](?!\w)"
    r"|(?<!\w)[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z](?!\w)",
    re.IGNORECASE,
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}")
_IBAN_LENGTHS = range(34, 14, -1)
_LETTERS_AND_DIGITS = re.compile(
    r"(?<!\w)(?=[A-Za-z]{0,12}\d)(?=\d{0,33}[A-Za-z])(?=(?:[A-Za-z]{0,12}\d){8})[A-Za-z\d]{10,34}(?!\w)"
)
_ACCOUNT_CUED = re.compile(
    r"\b(?:account|accounts|acct|acc|a/c|routing|sort ?code|aba|bsb|ifsc|bban|iban|customer|client"
    r"|member|membership|policy|wallet|passport|licen[cs]e|user|national|tax)"
    r"(?:[\s:#.=(-]{1,3}(?:number|numbers|no|num|nr|id|code|is|was|it'?s|ending|in|with|you|guys"
    r"|your|bank|for|my|the|of|at)\b){0,5}"
    r"[\s:#.=(-]{1,4}"
    r"(?P<number>[A-Za-z]{0,6}\d[A-Za-z\d]{0,33}"
    rf"(?: \d{{3,12}}|[{DASH}]\d{{2,12}}){{0,6}})(?!\w)",
    re.IGNORECASE,
)
_SHORTEST_CUED_ACCOUNT = 5
_LONG_RUN = 8
"""Digits of the shortest number that needs no cue."""
_BARE_RUN = re.compile(rf"(?<![\w.,$£€#+{DASH}])\d{{8,30}}(?![\w%])(?![.,{DASH}]\d)")
_COMPACT_DATE = re.compile(r"(?:(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))$")
_MONEY_AFTER = re.compile(r"\s?(?:[$£€]|usd|eur|gbp|dollars?|pounds?|euros?|rupees?|yen)\b", re.I)
_GROUP = re.compile(r"\d+")
_LETTERS_AND_TWO_DIGITS = re.compile(r"[A-Za-z]{2} ?\d\d")
"""What IBANs and British and Italian numbers begin with or hold."""
_TAX_WORDS = word_set("ssn social itin tin tax taxid national nino sin")
_ACCOUNT_WORDS = word_set(
    "account accounts acct acc routing sort sortcode aba bsb ifsc bban iban customer client member "
    "membership policy wallet passport licence license user national tax"
)


def find_identifiers(marks: Marks) -> Iterator[Span]:
    """Spans of CARD, SSN, IBAN and ACCOUNT in a text that has digits."""
    if marks.may_hold("cv", "security code"):
        for match in _CARD_CODE.finditer(marks.text):
            yield Span(match.start(1), match.end(1), "CARD")
    if marks.digits >= _CARD_DIGITS.start:
        yield from _cards(marks.text)
    yield from _social_security_numbers(marks)
    if marks.may_match(_LETTERS_AND_TWO_DIGITS):
        yield from _lettered_numbers(marks.text)
    yield from _accounts(marks)


def _cards(text: str) -> Iterator[Span]:
    """Card numbers by Luhn, by grouping or by cue."""
    for run in _DIGIT_GROUPS.finditer(text):
        if run.end() - run.start() < _CARD_DIGITS.start:
            continue
        groups = [group.span() for group in _GROUP.finditer(text, run.start(), run.end())]
        is_cued = _CARD_CUE.search(text, max(0, run.start() - CUE_REACH), run.start()) is not None
        first = 0
        while first < len(groups):
            last = _card_end(text, groups, first, is_cued)
            if last is not None:
                yield Span(groups[first][0], groups[last][1], "CARD")
                first = last
            first += 1


def _card_end(text: str, groups: list[tuple[int, int]], first: int, is_cued: bool) -> int | None:
    """Index of the last group of the longest card number that starts with group `first`."""
    digits = ""
    sizes: list[int] = []
    best: int | None = None
    for index in range(first, len(groups)):
        start, end = groups[index]
        digits += text[start:end]
        sizes.append(end - start)
        if sizes[-1] < _SHORTEST_CARD_GROUP or len(digits) >= _CARD_DIGITS.stop:
            break
        if len(digits) in _CARD_DIGITS and _is_card(digits, tuple(sizes), is_cued):
            best = index
    return best


def _is_card(digits: str, sizes: tuple[int, ...], is_cued: bool) -> bool:
    """Whether digits written in groups of `sizes` are a card number."""
    if is_cued or sizes in _CARD_GROUPINGS:
        return True
    if len(sizes) > 1 and sizes[0] != 4:
        return False
    if digits[0] not in "123456" or (len(digits) == 12 and digits[0] not in "56"):
        return False
    is_sixteen = len(digits) == 16 and digits[0] in "3456"
    return is_sixteen or bool(luhn.is_valid(digits))


def _social_security_numbers(marks: Marks) -> Iterator[Span]:
    """Numbers of social security and tax of digits alone: US, and Canadian with a cue."""
    if marks.digits >= 9:
        for match in _SSN.finditer(marks.text):
            yield Span(match.start(), match.end(), "SSN")
    if marks.may_hold_word(_TAX_WORDS):
        for match in _SSN_CUED.finditer(marks.text):
            yield Span(match.start("number"), match.end("number"), "SSN")


def _lettered_numbers(text: str) -> Iterator[Span]:
    """What has letters and digits by rule: British and Italian numbers, IBANs."""
    for match in _NATIONAL_INSURANCE.finditer(text):
        yield Span(match.start(), match.end(), "SSN")
    yield from _ibans(text)


def _ibans(text: str) -> Iterator[Span]:
    """IBANs in any case and grouping; the checksum finds where the number ends.

    A length that the country does not use is accepted where the checksum holds.
    """
    position = 0
    while match := _IBAN.search(text, position):
        position = match.start() + 4
        places = [match.start() + i for i, c in enumerate(match.group()) if c.isalnum()]
        compact = "".join(text[place] for place in places)
        ends = {n: places[n - 1] + 1 for n in _IBAN_LENGTHS if n <= len(compact)}
        sound = [
            n
            for n, end in ends.items()
            if not text[end : end + 1].isalnum() and _is_mod_97_sound(compact[:n])
        ]
        if sound:
            length = next((n for n in sound if iban.is_valid(compact[:n])), sound[0])
            position = ends[length]
            yield Span(match.start(), position, "IBAN")


def _is_mod_97_sound(compact: str) -> bool:
    """ISO 13616: letters read as 10 to 35, the first four characters moved to the end, 1 mod 97."""
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _accounts(marks: Marks) -> Iterator[Span]:
    """Account numbers by cue, by mixed letters and digits, and long runs that nothing explains."""
    text = marks.text
    if marks.digits >= _SHORTEST_CUED_ACCOUNT and (
        marks.may_hold_word(_ACCOUNT_WORDS) or marks.may_hold("a/c")
    ):
        for match in _ACCOUNT_CUED.finditer(text):
            number = match["number"]
            if sum(c.isdigit() for c in number) >= _SHORTEST_CUED_ACCOUNT and not _is_money(
                text, match.end("number")
            ):
                yield Span(match.start("number"), match.end("number"), "ACCOUNT")
    if marks.digits < _LONG_RUN:
        return
    for pattern in (_LETTERS_AND_DIGITS, _BARE_RUN):
        for match in pattern.finditer(text):
            before = text[max(0, match.start() - CUE_REACH) : match.start()]
            is_date = _COMPACT_DATE.match(match.group()) is not None
            if not (is_date or NOT_PERSONAL_CUE.search(before) or _is_money(text, match.end())):
                yield Span(match.start(), match.end(), "ACCOUNT")


def _is_money(text: str, end: int) -> bool:
    """Whether a currency follows, so that the number is an amount."""
    return _MONEY_AFTER.match(text, end) is not None
