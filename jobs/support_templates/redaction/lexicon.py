"""The word lists behind the name and address rules, and the tests on single words they answer.

Given and family names are the 1990 US census lists of the package `names` (0.3.0), ordered by
frequency. `common_words.txt` is the stop list: words that the en_US Hunspell dictionary (SCOWL)
accepts in lower case and that occur at least about once in a million words of English, without the
ones that in a chat are first of all names (John, Smith, Jack), with the vocabulary of payments,
brands, countries, months and chat spelling. A name that stands on it (Will, Mark, Grace) counts as
a name only next to a surname or after a cue.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

FREQUENT_SURNAMES = 5000
"""How many of the 88,799 surnames may start a find on their own, in lower case."""


SURNAMES_DESPITE_WORDS = 3000
"""How many surnames are accepted beside a given name though they are common words."""


def word_set(text: str) -> frozenset[str]:
    """The words of a list that is written as running text."""
    return frozenset(text.split())


_NOT_IN_LOWER_CASE = word_set(
    "best blank block boston box brand call carrier case cash cloud day deal do driver early "
    "east england english fair france free french friend german good hand head heard high "
    "holder house hurt key keys link little london long love madrid main major march means "
    "merchant north numbers page paris parent person post price quick read rush sample self "
    "shell shook south spain story street washington welsh west york"
)
"""Surnames that after a given name in lower case more often go on with the sentence."""

_WORD = re.compile(r"[a-z]+")
_LETTERS_NFKD_KEEPS = str.maketrans({"ß": "ss", "ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe"})


@dataclass(frozen=True)
class Lexicon:
    """Names and words in folded spelling: lower case, no diacritics, no apostrophes."""

    common: frozenset[str]
    ordinary: frozenset[str]
    given: frozenset[str]
    surnames: frozenset[str]
    everyday_surnames: frozenset[str]
    noun_surnames: frozenset[str]
    sure_given: frozenset[str]
    sure_surnames: frozenset[str]

    def is_common(self, key: str) -> bool:
        """Whether the word, or each part of a hyphenated one, is on the stop list."""
        return key in self.common or ("-" in key and all(p in self.common for p in key.split("-")))

    def is_given(self, key: str) -> bool:
        """Whether the word is a given name, be it a common word or not."""
        return key in self.given or ("-" in key and key.split("-")[0] in self.given)

    def is_sure_given(self, key: str) -> bool:
        """Whether the word is a given name and nothing else."""
        return key in self.sure_given or ("-" in key and key.split("-")[0] in self.sure_given)

    def is_surname(self, key: str) -> bool:
        """Whether the word, or a part of a hyphenated one, is in the list of surnames."""
        return key in self.surnames or (
            "-" in key and any(part in self.surnames for part in key.split("-"))
        )

    def is_noun_surname(self, key: str) -> bool:
        """Whether the word is a frequent surname, be it a common word or not."""
        return key in self.noun_surnames

    def is_sure_surname(self, key: str) -> bool:
        """Whether the word is a frequent surname and nothing else."""
        return key in self.sure_surnames or (
            "-" in key and any(part in self.sure_surnames for part in key.split("-"))
        )


@cache
def load_lexicon() -> Lexicon:
    """Read the lists once a process; about 0.1 s."""
    import names

    male, female, family = (
        _census(Path(names.FILES[key])) for key in ("first:male", "first:female", "last")
    )
    folder = resources.files(__package__)
    common = frozenset(folder.joinpath("common_words.txt").read_text(encoding="ascii").split())
    given = frozenset((*male, *female))
    everyday = frozenset(family[:SURNAMES_DESPITE_WORDS])
    return Lexicon(
        common=common,
        ordinary=common - everyday,
        given=given,
        surnames=frozenset(family),
        everyday_surnames=everyday - _NOT_IN_LOWER_CASE,
        noun_surnames=everyday - {"may"},
        sure_given=given - common,
        sure_surnames=frozenset(family[:FREQUENT_SURNAMES]) - common,
    )


def fold(word: str) -> str:
    """Lower case without diacritics and apostrophes, the spelling of the lists."""
    lowered = word.lower()
    if not lowered.isascii():
        decomposed = unicodedata.normalize("NFKD", lowered.translate(_LETTERS_NFKD_KEEPS))
        lowered = "".join(c for c in decomposed if not unicodedata.combining(c))
        lowered = lowered.replace("’", "")
    return lowered.replace("'", "") if "'" in lowered else lowered


def folded_words(text: str) -> frozenset[str]:
    """The runs of the letters a to z in `text`, after lower case and without diacritics."""
    lowered = text.lower()
    if not lowered.isascii():
        decomposed = unicodedata.normalize("NFKD", lowered.translate(_LETTERS_NFKD_KEEPS))
        lowered = "".join(c for c in decomposed if not unicodedata.combining(c))
    return frozenset(_WORD.findall(lowered))


def _census(path: Path) -> list[str]:
    """Names of a census file in its order, folded; a line is name, share, cumulated, rank."""
    lines = path.read_text(encoding="ascii").splitlines()
    return [line.split(maxsplit=1)[0].lower() for line in lines if line.strip()]
