"""Phrases after which a name is due, by how much they promise.

`TOLD`: the writer says that a name follows ("my name is"), so any uncommon word is one. `GREETED`:
a greeting or a closing ("Hi Sarah,", "Regards, Tom"). `RELATED`: a person is spoken of ("my wife
Ana"). `INTRODUCED`: "I am", "this is", which mostly go on with anything but a name. `MENTIONED`: a
preposition or a verb of paying ("to Mark"), after which capital letters make an ambiguous or an
unknown word a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

from jobs.support_templates.redaction.lexicon import word_set
from jobs.support_templates.redaction.marks import Marks


class Cue(Enum):
    """What a cue promises about the next word."""

    TOLD = "told"
    RELATED = "related"
    GREETED = "greeted"
    INTRODUCED = "introduced"
    MENTIONED = "mentioned"


CUE_WORDS = word_set(
    "name names named called call holder cardholder accountholder behalf attn registered "
    "issued hi hello hey hiya dear morning afternoon evening regards sincerely cheers thanks "
    "thx thank wife husband speaking here"
)
"""Words that make a text worth reading for names; cues that need a capital letter are not here."""

_ON_WHAT = r"(?:\s(?:on|of|for|in)\s(?:the|my|this|that|your|our)\s[a-z]+){0,2}"
_TOLD = re.compile(
    rf"\b(?:names?{_ON_WHAT}(?:\s?[:=]\s?|\s-\s|['’]?s\s|\s(?:is|was|are|reads|should\s(?:be|read)"
    r"|changed\sto|changed\sfrom|as|of)\s(?:now\s|spelled\s)?)"
    r"|(?:card|account)\s?holder['’]?s?(?:\sname)?(?:\s?[:=]\s?|\s(?:is|was)\s)"
    r"|(?:registered|issued|belongs|belonging|addressed|made\sout)\s(?:to|under|in)\s"
    r"|under\s(?:the\s)?name\s|call\sme\s|named\s|called\s|i\sgo\sby\s|on\sbehalf\sof\s|attn:?\s"
    r")[\"'“‘(]?",
    re.IGNORECASE,
)
_RELATED = re.compile(
    r"\b(?:(?:my|our|his|her|their)\s(?:wife|husband|spouse|partner|fiancee?|son|daughter|mother"
    r"|father|mom|mum|dad|brother|sister|friend|colleague|boss|landlord|roommate|flatmate|cousin"
    r"|uncle|aunt|nephew|niece|girlfriend|boyfriend|employer|lawyer|attorney)s?,?"
    r"|(?:speak|spoke|spoken|speaking|talk|talked|talking|chat|chatted|chatting)\s(?:to|with)"
    r"|(?:your\s)?(?:agent|advocate|colleague|representative|advisor|adviser)|ask\sfor)\s",
    re.IGNORECASE,
)
_GREETED = re.compile(
    r"(?:(?<!\w)(?:hi|hello|hey|hiya|dear|good\s(?:morning|afternoon|evening|day)|morning|welcome"
    r"|thanks|thx|thank\syou|cheers|bye|goodbye)(?:\s(?:there|again|so\smuch|very\smuch|a\slot))?"
    r"(?:,?\s|,)"
    r"|(?<!\w)(?:kind\s|best\s|warm\s)?(?:regards|wishes|sincerely|yours|truly|faithfully)[,\s]{1,3}"
    r"|\n-{0,2}\s?)",
    re.IGNORECASE,
)
_INTRODUCED = re.compile(
    r"(?<!\w)(?:i\sam|i['’]?m|this\sis|it['’]?s|it\sis|that\sis|that['’]?s|here\sis)\s",
    re.IGNORECASE,
)
_MENTIONED = re.compile(
    r"(?<!\w)(?:to|from|by|with|paid|pay|paying|told|asked|owe|gave|and|between)\s", re.IGNORECASE
)
_MENTIONED_WORDS = word_set("to from by with paid pay paying told asked owe gave and between")
_INTRODUCED_WORDS = word_set("am im m is its s thats")
_GREETED_WORDS = word_set(
    "hi hello hey hiya dear good morning welcome thanks thx thank cheers bye goodbye regards "
    "wishes sincerely yours truly faithfully"
)
_RELATED_WORDS = word_set(
    "wife husband spouse partner fiance fiancee son daughter mother father mom mum dad brother "
    "sister friend colleague boss landlord roommate flatmate cousin uncle aunt nephew niece "
    "girlfriend boyfriend employer lawyer attorney wifes husbands spouses partners fiances "
    "fiancees sons daughters mothers fathers moms mums dads brothers sisters friends colleagues "
    "bosss landlords roommates flatmates cousins uncles aunts nephews nieces girlfriends "
    "boyfriends employers lawyers attorneys speak spoke spoken speaking talk talked talking chat "
    "chatted chatting agent advocate representative advisor adviser ask"
)
_TOLD_WORDS = word_set(
    "name names holder holders cardholder cardholders accountholder accountholders registered "
    "issued belongs belonging addressed made call named called go behalf attn"
)


def find_cues(marks: Marks) -> dict[int, Cue]:
    """The place where each cue ends, and what it promises; the stronger cue wins a place."""
    return {
        match.end(): cue
        for pattern, cue in _possible(marks)
        for match in pattern.finditer(marks.text)
    }


def _possible(marks: Marks) -> Iterator[tuple[re.Pattern[str], Cue]]:
    """The patterns that can match, the weakest cue first."""
    if marks.may_hold_word(_MENTIONED_WORDS):
        yield _MENTIONED, Cue.MENTIONED
    if marks.may_hold_word(_INTRODUCED_WORDS):
        yield _INTRODUCED, Cue.INTRODUCED
    if marks.may_hold_word(_GREETED_WORDS) or "\n" in marks.text:
        yield _GREETED, Cue.GREETED
    if marks.may_hold_word(_RELATED_WORDS):
        yield _RELATED, Cue.RELATED
    if marks.may_hold_word(_TOLD_WORDS):
        yield _TOLD, Cue.TOLD
