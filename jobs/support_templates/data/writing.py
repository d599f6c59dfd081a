"""How customers of the simulated chat type: lower case, typing errors, personal data.

A message is a list of pieces. Typing errors hit only pieces of ordinary text, never a value of
personal data, and gold spans are measured after everything else is done, so a span always covers
exactly its value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
from random import Random
from typing import Literal

from faker import Faker

Kind = Literal[
    "NAME", "EMAIL", "PHONE", "CARD", "SSN", "ADDRESS",
    "HANDLE", "DOB", "IP", "URL", "IBAN", "ACCOUNT",
]  # fmt: skip
KINDS: tuple[Kind, ...] = (
    "NAME", "EMAIL", "PHONE", "CARD", "SSN", "ADDRESS",
    "HANDLE", "DOB", "IP", "URL", "IBAN", "ACCOUNT",
)  # fmt: skip

_TYPED_BY_HAND = ("NAME", "ADDRESS", "DOB")
"""Kinds that lazy typists also write in lower case; the others are copied."""
_LOWER_CASE_VALUES = 0.25
"""Share of lower-case messages whose hand-typed values are in lower case too."""
_BEFORE = 0.25
"""Share of sentences with personal data that precede the message instead of following it."""
_BORN = (date(1936, 1, 1), date(2007, 12, 31))
"""First and last day of birth; fixed, since Faker's own default moves with today's date."""

_CARD_GROUPS = {14: (4, 6, 4), 15: (4, 6, 5), 16: (4, 4, 4, 4)}
"""How the digits of a card are grouped on it, by their number."""

_NEIGHBOURS = {
    "a": "qsz", "b": "vgn", "c": "xdv", "d": "sfe", "e": "wrd", "f": "dgr", "g": "fht", "h": "gjy",
    "i": "uok", "j": "hku", "k": "jli", "l": "kop", "m": "nj", "n": "bmh", "o": "ipl", "p": "ol",
    "q": "wa", "r": "etf", "s": "adw", "t": "ryg", "u": "yij", "v": "cbf", "w": "qes", "x": "zcs",
    "y": "tuh", "z": "xa",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a message."""

    text: str
    """What it says."""
    kind: Kind | None = None
    """The kind of personal data that the whole piece is, or None."""
    is_verbatim: bool = False
    """Real text from a file: left as it was written."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where personal data are in a message, in characters."""

    start: int
    end: int
    kind: Kind


def type_out(
    pieces: Sequence[Piece], random: Random, *, lower_case_share: float, typo_share: float
) -> tuple[str, tuple[Span, ...]]:
    """Type a message as a hurried customer would; returns its text and the spans in it."""
    is_lower = random.random() < lower_case_share
    lowers_values = is_lower and random.random() < _LOWER_CASE_VALUES
    parts: list[str] = []
    spans: list[Span] = []
    position = 0
    for piece in pieces:
        text = piece.text
        if piece.kind is None and not piece.is_verbatim:
            text = mistype(text, typo_share, random)
            text = text.lower() if is_lower else text
        elif lowers_values and piece.kind in _TYPED_BY_HAND:
            text = text.lower()
        if piece.kind is not None:
            spans.append(Span(position, position + len(text), piece.kind))
        parts.append(text)
        position += len(text)
    return "".join(parts), tuple(spans)


def mistype(text: str, share: float, random: Random) -> str:
    """Replace, drop, double or swap letters, each with probability `share`.

    The gaps between mistyped characters are drawn from the geometric law, so the cost depends on
    the number of errors and not on the length.
    """
    if share == 0:
        return text
    step = math.log1p(-share) if share < 1 else -math.inf
    letters = list(text)
    position = _gap(random, step)
    while position < len(letters):
        letter = letters[position]
        if letter.lower() in _NEIGHBOURS:
            letters[position] = _slip(letter, letters, position, random)
        position += 1 + _gap(random, step)
    return "".join(letters)


def with_personal_data(
    pieces: Sequence[Piece], sentences: dict[str, tuple[str, ...]], fake: Faker, random: Random
) -> list[Piece]:
    """Add a sentence with a value of a random kind before or after a message."""
    kind = random.choice(KINDS)
    sentence = random.choice(sentences[kind])
    before, _, after = sentence.partition(f"{{{kind}}}")
    added = [Piece(before), Piece(personal_value(kind, fake, random), kind), Piece(after)]
    if sentence.endswith(".") and random.random() < _BEFORE:
        return [*added, Piece(" "), *pieces]
    is_closed = pieces[-1].text.endswith((".", "?", "!"))
    joint = " " if is_closed else random.choice((". ", ", ", " - "))
    return [*pieces, Piece(joint), *added]


def personal_value(kind: Kind, fake: Faker, random: Random) -> str:
    """A value of personal data as people write it; `fake` must draw from `random`."""
    match kind:
        case "NAME":
            first = fake.first_name()
            return first if random.random() < 0.2 else f"{first} {fake.last_name()}"
        case "EMAIL":
            return str(fake.email())
        case "PHONE":
            return str(fake.phone_number())
        case "CARD":
            number = str(fake.credit_card_number())
            return _grouped(number, _CARD_GROUPS.get(len(number)), random.choice(("", " ", "-")))
        case "SSN":
            return str(fake.ssn())
        case "ADDRESS":
            return str(fake.address()).replace("\n", ", ")
        case "HANDLE":
            return f"@{fake.user_name()}"
        case "DOB":
            return _date(fake.date_between_dates(*_BORN), random)
        case "IP":
            return str(fake.ipv6() if random.random() < 0.15 else fake.ipv4())
        case "URL":
            return str(fake.uri())
        case "IBAN":
            number = str(fake.iban())
            return _grouped(number, (4,) * math.ceil(len(number) / 4), random.choice(("", " ")))
        case "ACCOUNT":
            return str(fake.numerify("#" * random.randint(8, 12)))


def _date(day: date, random: Random) -> str:
    form = random.choice(("%m/%d/%Y", "%Y-%m-%d", "%B %d, %Y", "%d %B %Y", "%b %d %Y", "%m-%d-%Y"))
    return day.strftime(form)


def _grouped(value: str, sizes: Sequence[int] | None, separator: str) -> str:
    """Digits in groups of these sizes; whole where there is no custom of grouping."""
    if sizes is None:
        return value
    ends = list(accumulate(sizes))
    return separator.join(value[end - size : end] for size, end in zip(sizes, ends, strict=True))


def _gap(random: Random, step: float) -> int:
    """Characters to pass before the next error; `step` is log(1 - share)."""
    return int(math.log(1.0 - random.random()) / step)


def _slip(letter: str, letters: list[str], position: int, random: Random) -> str:
    """What is typed instead of a letter; a swap changes the next letter as well."""
    slip = random.randrange(4)
    if slip == 0:
        return ""
    if slip == 1:
        return letter * 2
    follower = letters[position + 1] if position + 1 < len(letters) else ""
    if slip == 2 and follower.lower() in _NEIGHBOURS and follower != letter:
        letters[position + 1] = letter
        return follower
    return random.choice(_NEIGHBOURS[letter.lower()])
