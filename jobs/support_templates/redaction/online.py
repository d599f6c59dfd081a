"""Where people are found online: EMAIL, URL, IP and HANDLE.

Shapes only, with the standard library's `ipaddress` as the judge of IP addresses. Each pattern
starts at a place where the one before cannot have started, or has bounded length, so the time is
linear in the text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from jobs.support_templates.redaction.lexicon import fold, load_lexicon, word_set
from jobs.support_templates.redaction.marks import Marks
from jobs.support_templates.redaction.spans import Span

_LABEL = r"[\w-]++"
_EMAIL = re.compile(
    rf"(?<![\w.+%-])[\w.+%-]++(?:['’][\w.+%-]++){{0,2}}+"
    rf"(?:@(?:{_LABEL}\.)*[^\W\d_][\w-]+| @ (?:{_LABEL}\.)+[^\W\d_]{{2,}})"
)
_SPELLED_AT = r"(?: \(at\) | \[at\] | at |\(at\)|\[at\])"
_SPELLED_DOT = r"(?: dot |\.|\(dot\)|\[dot\])"
_MAIL_HOSTS = r"(?:gmail|googlemail|yahoo|hotmail|outlook|icloud|aol|proton(?:mail)?|gmx|live|msn)"
_SPELLED_EMAIL = re.compile(
    rf"(?<![\w.+%-])[\w+%-]{{1,64}}(?:{_SPELLED_DOT}[\w+%-]{{1,64}}){{0,3}}{_SPELLED_AT}"
    rf"(?:{_MAIL_HOSTS}{_SPELLED_DOT}[a-z]{{2,6}}"
    r"|[\w-]{2,63}(?: dot |\(dot\)|\[dot\])[a-z]{2,6})"
    r"(?![\w])",
    re.IGNORECASE,
)
_URL = re.compile(r"(?:(?<!\w)(?:https?|ftp)://|(?<![\w.])www\.)[^\s<>\"]+", re.IGNORECASE)
_PLAIN_TLD = (
    "com|org|net|info|biz|edu|gov|mil|io|app|dev|xyz|online|shop|site|store|tech|eu|uk|de|fr|nl|ca"
    "|au|ru|ch|se|pl|jp|cn|br|mx|nz|za|tv|ly|gg"
)
_DOMAIN = re.compile(
    rf"(?<![\w@.+%-])(?:{_LABEL}\.)+"
    rf"(?:(?:{_PLAIN_TLD})(?![\w@-])(?::\d{{1,5}})?(?:[/?#][^\s<>\"]*)?|[a-z]{{2,10}}/[^\s<>\"]+)",
    re.IGNORECASE,
)
_DOT_LETTERS = re.compile(r"\w\.[A-Za-z]{2}")
_CLOSING = ".,;:!?)]}'’”»*"
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)(?::\d{1,5})?(?:/\d{1,2}(?!\d))?")
_IPV6 = re.compile(r"(?<![\w.])(?=[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:.]{2,45}(?!\w)")
_AT_HANDLE = re.compile(r"(?<![\w@/.])@[\w.-]*\w")
_CASHTAG = re.compile(r"(?<![\w$])\$(?!(?:[A-Z]{3}|amount|total|sum)\b)[A-Za-z][\w-]{2,30}")
_HANDLE_CUE = re.compile(
    r"\b(?:user ?name|user ?id|login|log-in|handle|nick ?name|screen ?name|gamer ?tag|twitter"
    r"|insta|instagram|telegram|skype|discord|snap ?chat|tik ?tok|linkedin|venmo|cash ?app"
    r"|cash ?tag|paypal|rev ?tag|alias)"
    r"(?: (?:name|id|handle|account|user ?name|user|tag|profile))?"
    r"(?P<link> (?:is|was|as|called|set to) | ?[:=] ?| - )?[ \"'“‘]*(?P<handle>[\w.#-]{3,40})",
    re.IGNORECASE,
)
_HANDLE_WORDS = word_set(
    "user username userid login log handle nick nickname screen screenname gamer gamertag "
    "twitter insta instagram telegram skype discord snap snapchat tik tiktok linkedin venmo "
    "cash cashapp cashtag paypal rev revtag alias"
)


_SPELLED_MARKS = (
    *("dot", "mail", "yahoo", "outlook", "icloud", "aol", "proton", "gmx", "live", "msn"),
)
"""What every spelled address of mail has one of."""


def find_online(marks: Marks) -> Iterator[Span]:
    """Spans of EMAIL, URL, IP and HANDLE, each searched only where its marks occur."""
    text = marks.text
    if "@" in text:
        yield from _matches(_EMAIL, text, "EMAIL")
        yield from _matches(_AT_HANDLE, text, "HANDLE")
    if ("at " in text or "at)" in text or "at]" in text or "AT " in text) and marks.may_hold(
        *_SPELLED_MARKS
    ):
        yield from _matches(_SPELLED_EMAIL, text, "EMAIL")
    if "$" in text:
        yield from _matches(_CASHTAG, text, "HANDLE")
    if "." in text and _DOT_LETTERS.search(text):
        yield from _trimmed(_URL, text)
        yield from _trimmed(_DOMAIN, text)
    elif "://" in text:
        yield from _trimmed(_URL, text)
    if marks.digits >= 4 and text.count(".") >= 3:
        yield from _ipv4_addresses(text)
    if text.count(":") >= 2:
        yield from _ipv6_addresses(text)
    if not _HANDLE_WORDS.isdisjoint(marks.words):
        yield from _cued_handles(text)


def _matches(pattern: re.Pattern[str], text: str, kind: str) -> Iterator[Span]:
    """Every match of `pattern` as it stands."""
    for match in pattern.finditer(text):
        yield Span(match.start(), match.end(), kind)


def _trimmed(pattern: re.Pattern[str], text: str) -> Iterator[Span]:
    """Links without the punctuation that closes the sentence around them."""
    for match in pattern.finditer(text):
        length = len(match.group().rstrip(_CLOSING))
        yield Span(match.start(), match.start() + length, "URL")


def _ipv4_addresses(text: str) -> Iterator[Span]:
    """IP addresses of version 4; a number above 255 makes it a version or a time."""
    for match in _IPV4.finditer(text):
        octets = re.split("[:/]", match.group())[0].split(".")
        if all(int(octet) <= 255 for octet in octets):
            yield Span(match.start(), match.end(), "IP")


def _ipv6_addresses(text: str) -> Iterator[Span]:
    """IP addresses of version 6; `ipaddress` decides, so times stay."""
    for match in _IPV6.finditer(text):
        start, candidate = match.start(), match.group().rstrip(".")
        if candidate.startswith(":") and not candidate.startswith("::"):
            start, candidate = start + 1, candidate[1:]
        if candidate.endswith(":") and not candidate.endswith("::"):
            candidate = candidate[:-1]
        if len(candidate) > 2 and _is_ipv6(candidate):
            yield Span(start, start + len(candidate), "IP")


def _is_ipv6(candidate: str) -> bool:
    try:
        ipaddress.IPv6Address(candidate)
    except ValueError:
        return False
    return True


def _cued_handles(text: str) -> Iterator[Span]:
    """Handles without a sign, after "my username is" and the like."""
    lexicon = load_lexicon()
    for match in _HANDLE_CUE.finditer(text):
        handle = match["handle"].rstrip(".-#")
        is_written_like_one = any(c.isdigit() or c in "_.#" for c in handle[1:]) and not (
            handle.replace(".", "").isdigit()
        )
        is_told = match["link"] is not None and not lexicon.is_common(fold(handle))
        if len(handle) >= 3 and (is_written_like_one or is_told):
            start = match.start("handle")
            yield Span(start, start + len(handle), "HANDLE")
