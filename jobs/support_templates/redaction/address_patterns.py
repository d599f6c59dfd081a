"""The shapes of postal addresses, one compiled pattern for each.

Patterns only; what counts as an address is decided beside them in `addresses`. The suffixes are
those of USPS Publication 28, appendix C1. Every repetition is bounded and every pattern starts at a
rare mark, a digit or a keyword, so the time is linear in the text.
"""

from __future__ import annotations

import re

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
    "|ramp|ranch|rapids?|rest|ridges?|river|roads|route|row|rue|run|shoals?|shores?|springs?|spurs?"
    "|squares?|sq|station|stream|streets|summit|trace|track|trail|trailer|tunnel|unions?|valleys?"
    "|via|viaduct|views?|villages?|ville|vista|walks?|wall|way|ways|wells?"
)
_NAME_WORD = r"(?:[^\W\d_][\w'’.-]{0,24}|\d{1,3}(?:st|nd|rd|th))"
SUFFIX_WORDS = frozenset(
    word
    for suffix in f"{_PLAIN_SUFFIXES}|{_WORD_SUFFIXES}".split("|")
    for word in {suffix.replace("?", ""), suffix.removesuffix("s?")}
)
"""The suffixes with and without the `s` that may end them."""
_SPACE = r"[ \t]{1,3}"
_DWELLING = (
    r"(?:flat|studio|apartment|apt|unit|suite|floor|room|house no|h\.? ?no)\.?\s?\d{1,5}[A-Za-z]?"
)
_NUMBER = r"\d{1,6}[A-Za-z]?(?:[-/]\d{1,4}[A-Za-z]?)?"
_NUMBERED = (
    r"(?<![\w.,$£€#/:+-])(?<![$£€] )"
    rf"(?:{_DWELLING}[,\s]{{1,3}}(?:{_NUMBER},?{_SPACE})?|{_NUMBER},?{_SPACE})"
)
STREET = re.compile(
    rf"{_NUMBERED}(?P<words>(?:{_NAME_WORD}{_SPACE}){{1,4}}?)"
    rf"(?:(?P<plain>{_PLAIN_SUFFIXES})|(?P<word>{_WORD_SUFFIXES}))\b\.?(?!['’-]\w)"
    rf"(?:{_SPACE}(?:N|S|E|W|NE|NW|SE|SW|North|South|East|West)\b\.?)?",
    re.IGNORECASE,
)
_BREAK = r"[,\s]{1,3}"
UNIT = re.compile(
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
_POSTCODE = r"(?:[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}|[A-Z]\d[A-Z] ?\d[A-Z]\d)"
_CITY_WORD = r"[^\W\d_][\w'’.-]{0,24}"
CITY = re.compile(
    rf"{_BREAK}(?:{_CITY_WORD}{_BREAK}){{1,5}}?"
    rf"(?:(?:{_STATES})\b\.?{_BREAK}\d{{5}}(?:-\d{{4}})?"
    rf"|(?-i:[A-Z]{{2,3}}){_BREAK}(?:\d{{4,6}}|{_POSTCODE})|{_POSTCODE})(?!\w)"
    rf"|{_BREAK}{_POSTCODE}(?!\w)|{_BREAK}\d{{5}}(?:-\d{{4}})?(?!\w)(?:{_SPACE}(?-i:[A-ZÀ-Þ])[\w'’-]{{1,24}})?",
    re.IGNORECASE,
)
TOWN = re.compile(
    r"\s?[,\n]\s?(?P<town>[A-Z][\w'’-]{1,24}(?: [A-Z][\w'’-]{1,24}){0,2})(?:,? [A-Z]{2}\b)?(?!\w)"
)
CITY_ALONE = re.compile(
    rf"(?<![\w'’-])(?:(?:[A-Z][\w'’.-]{{1,24}} ){{0,2}}[A-Z][\w'’.-]{{1,24}},? (?:{_STATES})"
    rf"|(?:{_CITY_WORD} )?{_CITY_WORD}, (?i:{_STATES})),? \d{{5}}(?:-\d{{4}})?(?!\w)"
)
BOX = re.compile(
    r"(?<!\w)(?:p\.?\s?o\.?\s?box|post office box)\s*#?\s*\d{1,6}\b"
    r"|(?<!\w)(?:psc|cmr|unit)\s\d{1,5},?\s(?:box)\s\d{1,5}",
    re.IGNORECASE,
)
_FORCES = r"(?:APO|FPO|DPO)[,\s]{1,3}A[AEP][,\s]{1,3}\d{5}(?:-\d{4})?"
MILITARY = re.compile(
    rf"(?:(?<!\w)US(?:NS|NV|S|CGC|CG)\s[\w'’-]{{2,24}}[,\s]{{1,3}})?(?<!\w){_FORCES}",
    re.IGNORECASE,
)
MILITARY_ADDED = re.compile(_BREAK + _FORCES, re.IGNORECASE)
CONTINENTAL = re.compile(
    r"(?<!\w)[^\W\d_][\w-]{1,30}(?:straße|strasse|str\.|gasse|allee|platz|damm|weg|ufer)"
    r"\s\d{1,4}[a-z]?(?:[-/]\d{1,4})?\b"
    r"|(?<!\w)(?:calle|rua|via|viale|corso|avenida|plaza|piazza|rue)"
    r"\s(?:[^\W\d_][\w'’.-]{0,24},?\s){1,4}?(?:n[º°o.]{0,2}\s?)?\d{1,4}[a-z]?\b"
    r"|(?<![\w.,$£€/-])\d{1,4}(?: ?bis| ?ter)?,?"
    r"\s(?:rue|avenue|boulevard|place|chemin|impasse|allée|quai|cours)"
    r"\s(?:d[eu]s?\s|de\sla\s|de\sl['’]|d['’]|la\s|l['’])?[^\W\d_][\w'’-]{1,24}"
    r"(?:\s(?-i:[A-ZÀ-Þ])[\w'’-]{1,24}){0,2}",
    re.IGNORECASE,
)
_PROPER = r"[A-ZÀ-ÞŁŚŻ][\w'’.-]{1,24}"
PROPER_LINE = re.compile(
    rf"{_NUMBERED}(?:{_PROPER} ?){{1,4}}[,\n]\s?(?:{_PROPER}[ ,\n]{{1,2}}){{1,4}}"
    rf"(?:[A-Z]{{2,3}}[ ,]{{1,2}})?(?:{_POSTCODE}|\d{{4,6}})(?!\w)"
)
CONTINENTAL_LINE = re.compile(
    r"(?<!\w)(?:(?:ulica|ul\.|calle|rue|via|rua|plac) )?"
    rf"(?:{_PROPER} (?:d[aeiou]s? |del |la )?){{1,4}}"
    r"\d{1,4}[A-Za-z]?(?:[-/]\d{1,4})?[,\s]{1,3}"
    r"(?:\d{4,5}|\d{2}-\d{3}|\d{5}-\d{3}|\d{4} ?[A-Z]{2}),?"
    rf"\s{_PROPER}(?: {_PROPER}){{0,2}}"
)
POSTCODE_ALONE = re.compile(rf"(?<!\w)(?-i:{_POSTCODE})(?!\w)")
POSTCODE_CUED = re.compile(
    r"\b(?:zip|zip ?code|post ?code|postal code)(?: is| was)?[\s:=-]{1,3}"
    rf"(?P<code>\d{{5}}(?:-\d{{4}})?|{_POSTCODE})(?!\w)",
    re.IGNORECASE,
)
CUE = re.compile(
    r"\b(?:address|addresses|live|lives|living|reside|residing|moved|located|ship|shipped|deliver"
    r"|delivered|delivery|mail|mailed|send|sent|post|home|house)\b[^\d\n]{0,40}$",
    re.IGNORECASE,
)
CUED_NUMBER = re.compile(
    r"\b(?:address(?: on (?:file|record))?(?: is| was|:| -)+|live at|living at|reside at|moved to)"
    rf"(?: now)?[\s:]{{1,2}}(?P<line>\d{{1,6}}[A-Za-z]?,?{_SPACE}(?-i:[A-Z])[\w'’.-]{{1,24}}"
    rf"(?:{_SPACE}(?-i:[A-Z])[\w'’.-]{{1,24}}){{0,3}})",
    re.IGNORECASE,
)
MARKS = re.compile(
    r"[a-z]\.?,?\s{1,3}(?:#?\d|[A-Z])|\d[A-Za-z]?,?[ \t]{1,3}[^\W\d_]|[A-Za-z]\d", re.IGNORECASE
)
