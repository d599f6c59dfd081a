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

from jobs.support_templates.redaction.lexicon import fold, load_lexicon
from jobs.support_templates.redaction.spans import Span

_PLAIN_SUFFIXES = (
    "street|str|st|avenue|ave|av|road|rd|boulevard|blvd|lane|ln|drive|dr|court|ct|crescent|cres"
    "|terrace|ter|parkway|pkwy|highway|hwy|freeway|expressway|motorway|turnpike|alley|mews|causeway"
    "|stravenue|trafficway|throughway|underpass|overpass|skyway|close|gardens|circle|cir"
)
_WORD_SUFFIXES = (
    "annex|arcade|bayou|beach|bend|bluffs?|bottom|branch|bridge|brooks?|burgs?|bypass|camp|canyon"
    "|cape|centers?|circles|cliffs?|club|common|commons|corners?|course|courts|coves?|creek|crest"
    "|crossing|crossroads?|curve|dale|dam|divide|drives|estates?|extensions?|falls?|ferry|fields?"
    "|flats?|fords?|forest|forges?|forks?|fort|garden|gateway|glens?|greens?|groves?|harbors?|haven"
    "|heights|hills?|hollow|inlet|islands?|isle|junctions?|keys?|knolls?|lakes?|land|landing|lights?"
    "|loaf|locks?|lodge|loop|mall|manors?|meadows?|mills?|mission|mount|mountains?|neck|orchard|oval"
    "|park|parks|pass|passage|path|pike|pines?|place|pl|plains?|plaza|points?|ports?|prairie|radial"
    "|ramp|ranch|rapids?|rest|ridges?|river|roads|route|row|rue|run|shoals?|shores?|springs?|spur"
    "|squares?|sq|station|stream|streets|summit|trace|track|trail|trailer|tunnel|unions?|valleys?"
    "|via|viaduct|views?|villages?|ville|vista|walks?|wall|way|ways|wells?"
)
_NAME_WORD = r"(?:[^\W\d_][\w'’.-]{0,24}|\d{1,3}(?:st|nd|rd|th))"
_SPACE = r"[ \t]{1,3}"
_STREET = re.compile(
    rf"(?<![\w.,$£€#/:+-])(?<![$£€] )(?P<number>\d{{1,6}}[A-Za-z]?(?:[-/]\d{{1,4}}[A-Za-z]?)?),?{_SPACE}"
    rf"(?P<words>(?:{_NAME_WORD}{_SPACE}){{1,4}}?)"
    rf"(?:(?P<plain>{_PLAIN_SUFFIXES})|(?P<word>{_WORD_SUFFIXES}))\b\.?(?!['’-]\w)"
    rf"(?:{_SPACE}(?:N|S|E|W|NE|NW|SE|SW|North|South|East|West)\b\.?)?",
    re.IGNORECASE,
)
_BREAK = r"[,\s]{1,3}"
_UNIT = re.compile(
    rf"{_BREAK}(?:(?:apt|apartment|suite|ste|unit|flat|floor|fl|room|rm|bldg|building)\b\.?\s?#?|#\s?)"
    r"\w{1,6}\b",
    re.IGNORECASE,
)
_STATES = (
    "A[KLRZ]|C[AOT]|D[CE]|FL|FM|G[AU]|HI|I[ADLN]|K[SY]|LA|M[ADEHINOPST]|N[CDEHJMVY]|O[HKR]|P[ARW]"
    "|RI|S[CD]|T[NX]|UT|V[AIT]|W[AIVY]|AS|Alabama|Alaska|Arizona|Arkansas|California|Colorado"
    "|Connecticut|Delaware|Florida|Georgia|Hawaii|Idaho|Illinois|Indiana|Iowa|Kansas|Kentucky"
    "|Louisiana|Maine|Maryland|Massachusetts|Michigan|Minnesota|Mississippi|Missouri|Montana"
    "|Nebraska|Nevada|New Hampshire|New Jersey|New Mexico|New York|North Carolina|North Dakota|Ohio"
    "|Oklahoma|Oregon|Pennsylvania|Rhode Island|South Carolina|South Dakota|Tennessee|Texas|Utah"
    "|Vermont|Virginia|Washington|West Virginia|Wisconsin|Wyoming"
)
_UK_POSTCODE = r"[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}"
_CITY_WORD = r"[^\W\d_][\w'’.-]{0,24}"
_CITY = re.compile(
    rf"{_BREAK}(?:{_CITY_WORD}{_BREAK}){{1,5}}?"
    rf"(?:(?:{_STATES}|[A-Z]{{2,3}})\b\.?{_BREAK}\d{{4,5}}(?:-\d{{4}})?|{_UK_POSTCODE})(?!\w)"
    rf"|{_BREAK}{_UK_POSTCODE}(?!\w)|{_BREAK}\d{{5}}(?:-\d{{4}})?(?!\w)(?:{_SPACE}{_CITY_WORD})?",
    re.IGNORECASE,
)
_TOWN = re.compile(
    r"\s?[,\n]\s?(?P<town>[A-Z][\w'’-]{1,24}(?: [A-Z][\w'’-]{1,24}){0,2})(?:,? [A-Z]{2}\b)?(?!\w)"
)
_CITY_ALONE = re.compile(
    rf"(?<![\w'’-])(?:[A-Z][\w'’.-]{{1,24}} ){{0,2}}{_CITY_WORD},? (?-i:{_STATES}),? \d{{5}}(?:-\d{{4}})?(?!\w)"
    rf"|(?<![\w'’-])(?:{_CITY_WORD} )?{_CITY_WORD}, (?i:{_STATES}),? \d{{5}}(?:-\d{{4}})?(?!\w)"
)
_BOX = re.compile(
    r"(?<!\w)(?:p\.?\s?o\.?\s?box|post office box)\s*#?\s*\d{1,6}\b"
    r"|(?<!\w)(?:psc|cmr|unit)\s\d{1,5},?\s(?:box)\s\d{1,5}",
    re.IGNORECASE,
)
_MILITARY = re.compile(
    r"(?:(?<!\w)US(?:NS|NV|S|CGC|CG)\s[\w'’-]{2,24}[,\s]{1,3})?"
    r"(?<!\w)(?:APO|FPO|DPO)[,\s]{1,3}A[AEP][,\s]{1,3}\d{5}(?:-\d{4})?",
    re.IGNORECASE,
)
_CONTINENTAL = re.compile(
    r"(?<!\w)[^\W\d_][\w-]{1,30}(?:straße|strasse|str\.|gasse|allee|platz|damm|weg|ufer)\s\d{1,4}[a-z]?\b"
    r"|(?<!\w)(?:calle|rua|via|viale|corso|avenida|plaza|piazza|rue)\s(?:[^\W\d_][\w'’.-]{0,24},?\s){1,4}?"
    r"(?:n[º°o.]{0,2}\s?)?\d{1,4}[a-z]?\b"
    r"|(?<![\w.,$£€/-])\d{1,4}(?: ?bis| ?ter)?,?\s(?:rue|avenue|boulevard|place|chemin|impasse|allée|quai|cours)"
    r"\s(?:d[eu]s?\s|de\sla\s|de\sl['’]|d['’]|la\s|l['’])?[^\W\d_][\w'’-]{1,24}(?:\s[A-ZÀ-Þ][\w'’-]{1,24}){0,2}",
    re.IGNORECASE,
)
_POSTCODE_ALONE = re.compile(rf"(?<!\w)(?-i:{_UK_POSTCODE})(?!\w)")
_POSTCODE_CUED = re.compile(
    r"\b(?:zip|zip ?code|post ?code|postal code)(?: is| was)?[\s:=-]{1,3}"
    rf"(?P<code>\d{{5}}(?:-\d{{4}})?|{_UK_POSTCODE})(?!\w)",
    re.IGNORECASE,
)
_CUE = re.compile(
    r"\b(?:address|addresses|live|lives|living|reside|residing|moved|located|ship|shipped|deliver"
    r"|delivered|delivery|mail|mailed|send|sent|post|home|house)\b[^\d\n]{0,40}$",
    re.IGNORECASE,
)
_CUED_NUMBER = re.compile(
    r"\b(?:address(?: on (?:file|record))?(?: is| was|:| -)+|live at|living at|reside at|moved to)"
    rf"(?: now)?[\s:]{{1,2}}(?P<line>\d{{1,6}}[A-Za-z]?,?{_SPACE}(?-i:[A-Z])[\w'’.-]{{1,24}}"
    rf"(?:{_SPACE}(?-i:[A-Z])[\w'’.-]{{1,24}}){{0,3}})",
    re.IGNORECASE,
)
_CUE_REACH = 50
_MARKS = re.compile(
    r"[a-z]\.?,?\s{1,3}(?:#?\d|[A-Z])|\d[A-Za-z]?,?[ \t]{1,3}[^\W\d_]|[A-Za-z]\d", re.IGNORECASE
)
_NOT_STREET = frozenset(
    "a am an and are as at bank be been but by can card cards cents charge day days did do dollar "
    "dollars down each euro euros every fee for from gbp get got had has have hour hours how i if in "
    "into is it its items just later left me min mins minute minutes more month months my no not of "
    "off on or out over past payment payments people percent pm pound pounds purchase says seconds "
    "so than that the then there these they this time times to transaction transactions transfer "
    "transfers up us usd was we week weeks were when will with working year years yet you your".split()
)


def find_addresses(text: str) -> Iterator[Span]:
    """Spans of ADDRESS in a text that has digits."""
    if not _MARKS.search(text):
        return
    for match in _STREET.finditer(text):
        end = _continued(text, match.end())
        if _is_street(text, match, has_continuation=end > match.end()):
            yield Span(match.start(), end, "ADDRESS")
    for match in _CUED_NUMBER.finditer(text):
        yield Span(match.start("line"), _continued(text, match.end()), "ADDRESS")
    for pattern in (_BOX, _CONTINENTAL, _MILITARY):
        for match in pattern.finditer(text):
            yield Span(match.start(), _continued(text, match.end()), "ADDRESS")
    for pattern in (_CITY_ALONE, _POSTCODE_ALONE):
        for match in pattern.finditer(text):
            yield Span(match.start(), match.end(), "ADDRESS")
    for match in _POSTCODE_CUED.finditer(text):
        yield Span(match.start("code"), match.end("code"), "ADDRESS")


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
    return _CUE.search(text, max(0, match.start() - _CUE_REACH), match.start()) is not None


def _continued(text: str, end: int) -> int:
    """Where the address ends once unit, town, state and postcode are taken in."""
    for pattern in (_UNIT, _CITY):
        if match := pattern.match(text, end):
            end = match.end()
    if match := _MILITARY.match(text, end + 1):
        return match.end()
    if match := _TOWN.match(text, end):
        lexicon = load_lexicon()
        keys = [fold(word) for word in match["town"].split()]
        if not all(lexicon.is_common(key) for key in keys):
            return match.end()
    return end
